"""Simulates Dynamic QR: a PNG of the requested size."""

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import segno

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.validation import (
    PHONE_PATTERN,
    SHORTCODE_PATTERN,
    bad_field,
    named_fault,
    read_amount,
    read_text,
)

SIZES = range(50, 1001)
"""Pixels of a side."""

_CODES = dict.fromkeys(("BG", "PB", "WA"), SHORTCODE_PATTERN) | dict.fromkeys(("SM", "SB"), PHONE_PATTERN)
_BORDER = 4
_MOST_TEXT = 100
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class QrRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A valid request. ``amount`` is in KES, ``size`` in pixels."""

    merchant_name: str
    reference: str
    amount: int
    transaction_code: str
    receiver: str
    size: int


class QrCodes:
    """Answers the one request of Dynamic QR."""

    def __init__(self, *, clock: Clock, controls: Controls, chance: SeededRandom) -> None:
        self._clock = clock
        self._controls = controls
        self._chance = chance

    async def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """Raises Fault."""
        habit = await self._controls.habit("qrcode")
        wanted = read_qr_request(body)
        if habit == "internal_error":
            raise named_fault("500.003.1001")
        image = draw_png(_modules(wanted), wanted.size + (1 if habit == "other_size" else 0))
        pictures: dict[str, str | None] = {
            "no_image": None,
            "not_base64": "<svg>",
            "not_png": base64.b64encode(b"GIF89a" + image[6:]).decode(),
            "cut_off": base64.b64encode(image[: len(image) // 2]).decode(),
            "flipped_bit": base64.b64encode(image[:60] + bytes([image[60] ^ 1]) + image[61:]).decode(),
        }
        now = self._clock.now().astimezone(EAT)
        answer = {
            "ResponseCode": f"AG_{now:%Y%m%d}_{(await self._chance.draw(10)).hex()}",
            "RequestID": await self._chance.identifier(),
            "ResponseDescription": "QR Code Successfully Generated.",
            "QRCode": pictures.get(habit, base64.b64encode(image).decode()),
        }
        if habit == "code_00":
            # The sandbox.
            del answer["RequestID"]
            answer["ResponseCode"] = "00"
        return {name: value for name, value in answer.items() if value is not None}


def read_qr_request(body: dict[str, Any]) -> QrRequest:
    """Raises Fault for the first invalid field."""
    name, reference = read_text(body, "MerchantName"), read_text(body, "RefNo")
    for field, value in (("MerchantName", name), ("RefNo", reference)):
        if not value.strip() or len(value) > _MOST_TEXT:
            raise bad_field(field)
    amount = read_amount(body)
    code, receiver = read_text(body, "TrxCode"), read_text(body, "CPI")
    if code not in _CODES:
        raise bad_field("TrxCode")
    if not _CODES[code].match(receiver):
        raise bad_field("CPI")
    size = read_text(body, "Size")
    if not (size.isascii() and size.isdigit() and len(size) <= 4 and int(size) in SIZES):
        raise bad_field("Size")
    return QrRequest(
        merchant_name=name,
        reference=reference,
        amount=amount,
        transaction_code=code,
        receiver=receiver,
        size=int(size),
    )


def _modules(wanted: QrRequest) -> list[list[bool]]:
    """Return a QR code's modules with a light border. Only M-Pesa's apps know the real text."""
    text = "|".join(str(value) for value in msgspec.structs.astuple(wanted)[:-1])
    rows = segno.make(text.encode("utf-8", "replace"), error="m", micro=False).matrix_iter(border=_BORDER)
    return [[bool(module) for module in row] for row in rows]


def draw_png(modules: Sequence[Sequence[bool]], size: int) -> bytes:
    """Return a grayscale PNG of ``size`` by ``size`` pixels."""
    count = len(modules)
    lines = [
        b"\0" + bytes(0 if modules[y * count // size][x * count // size] else 255 for x in range(size))
        for y in range(size)
    ]
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
