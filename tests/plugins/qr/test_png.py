"""Protects the check of QR codes: only a whole PNG image is handed to a merchant."""

import struct
import zlib

import pytest

from mpesa_gateway_qr.png import MOST_BYTES, SIGNATURE, NotPng, read_png
from mpesa_gateway_simulator.qr_codes import draw_png


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(
    width: int = 3, height: int = 2, depth: int = 8, colour: int = 0, interlace: int = 0, pixels: bytes | None = None
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    rows = bytes(height * (1 + width)) if pixels is None else pixels
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


@pytest.mark.parametrize("size", [1, 29, 100, 300, 1000])
def test_drawn_png_has_the_requested_size(size: int) -> None:
    assert read_png(draw_png([[True, False], [False, True]], size)) == (size, size)


def test_png_of_each_colour_type_with_further_and_several_data_chunks_is_read() -> None:
    assert read_png(make_png()) == (3, 2)
    assert read_png(make_png(8, 2, depth=1, pixels=bytes(4))) == (8, 2)
    assert read_png(make_png(9, 2, depth=1, pixels=bytes(6))) == (9, 2)
    assert read_png(make_png(3, 2, colour=6, pixels=bytes(2 * 13))) == (3, 2)
    assert read_png(make_png(8, 8, interlace=1, pixels=bytes(15 + 64))) == (8, 8)
    whole = make_png()
    data = zlib.compress(bytes(8))
    at = whole.index(b"IDAT") - 4
    split = whole[:at] + chunk(b"pHYs", bytes(9)) + chunk(b"IDAT", data[:5]) + chunk(b"IDAT", data[5:]) + chunk(b"IEND")
    assert read_png(split) == (3, 2)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"GIF89a",
        SIGNATURE,
        SIGNATURE + chunk(b"IEND"),
        SIGNATURE + chunk(b"IHDR", bytes(12)) + chunk(b"IEND"),
        make_png() + b"more",
        make_png(width=0, pixels=b""),
        make_png(width=5000),
        make_png(depth=3),
        make_png(colour=5),
        make_png(interlace=2),
        make_png(pixels=bytes(7)),
        make_png(pixels=bytes(9)),
        make_png(pixels=b""),
        # Inflates to far more than its dimensions.
        make_png(pixels=bytes(10_000_000)),
        SIGNATURE + bytes(MOST_BYTES),
        make_png().replace(b"IEND", b"IENX"),
        SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"x")
        + chunk(b"IEND"),
    ],
)
def test_broken_png_is_refused(broken: bytes) -> None:
    with pytest.raises(NotPng):
        read_png(broken)


def test_png_with_any_flipped_bit_or_missing_tail_is_refused() -> None:
    whole = make_png()
    for at in range(len(whole)):
        with pytest.raises(NotPng):
            read_png(whole[:at])
        with pytest.raises(NotPng):
            read_png(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
