"""Checks that bytes are a whole PNG image."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 1_000_000
MOST_PIXELS = 4_000
"""Pixels of a side."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by colour type."""
_DEPTHS = frozenset({1, 2, 4, 8, 16})


class NotPng(ValueError):
    """The message says what is wrong."""


def read_png(content: bytes) -> tuple[int, int]:
    """Return width and height in pixels.

    Checks signature, chunks with their checksums, header and the length of the pixels. Raises NotPng.
    """
    if not content.startswith(SIGNATURE) or len(content) > MOST_BYTES:
        raise NotPng("it has no PNG signature" if len(content) <= MOST_BYTES else "it is too large")
    chunks = list(_chunks(content))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or chunks[-1] != (b"IEND", b""):
        raise NotPng("it does not begin with a header and end with an end")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    if not (1 <= width <= MOST_PIXELS and 1 <= height <= MOST_PIXELS) or depth not in _DEPTHS:
        raise NotPng("its dimensions are not those of a picture")
    if colour not in _CHANNELS or interlace not in {0, 1}:
        raise NotPng("its header is invalid")
    expected = height * (1 + (width * depth * _CHANNELS[colour] + 7) // 8)
    # Interlaced rows have more filter bytes: seven passes have at most two rows for each of the image.
    most = expected if interlace == 0 else expected + 8 * (width + height)
    found = _inflated(b"".join(data for kind, data in chunks if kind == b"IDAT"), most)
    if found > most or (found < expected and interlace == 0):
        raise NotPng("its pixels are incomplete")
    return width, height


def _inflated(data: bytes, most: int) -> int:
    """Return the length of the pixels, without inflating more than ``most`` and a byte."""
    inflater = zlib.decompressobj()
    try:
        found = len(inflater.decompress(data, most + 1))
    except zlib.error:
        raise NotPng("its pixels are damaged") from None
    if found <= most and not inflater.eof:
        raise NotPng("its pixels are incomplete")
    return found


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(content):
        head = content[at : at + 8]
        if len(head) < 8:
            raise NotPng("it is cut off")
        length = int.from_bytes(head[:4], "big")
        end = at + 12 + length
        if end > len(content):
            raise NotPng("it is cut off")
        kind, data = head[4:], content[at + 8 : end - 4]
        if zlib.crc32(kind + data) != int.from_bytes(content[end - 4 : end], "big"):
            raise NotPng("a checksum is wrong")
        yield kind, data
        at = end
