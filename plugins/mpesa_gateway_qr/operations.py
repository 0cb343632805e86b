"""The Daraja operation of Dynamic QR."""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from mpesa_gateway.daraja.exceptions import OutcomeUnknown
from mpesa_gateway.daraja.operations import DarajaCredentials, Operation
from mpesa_gateway.money import Kes
from mpesa_gateway_qr.png import NotPng, read_png

_PREFIX = "data:image/png;base64,"


@dataclass(frozen=True, kw_only=True)
class QrCode:
    """A QR code of the credentials' receiver; can be repeated. ``size`` is in pixels."""

    merchant_name: str
    reference: str
    amount: Kes
    size: int

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        return {
            "MerchantName": self.merchant_name,
            "RefNo": self.reference,
            "Amount": int(self.amount),
            "TrxCode": "PB" if credentials.till_number is None else "BG",
            "CPI": credentials.receiver,
            "Size": str(self.size),
        }


@dataclass(frozen=True)
class QrPicture:
    """A checked PNG image; ``size`` is its width and height in pixels."""

    content: bytes
    size: int


def read_picture(answer: Any) -> QrPicture:
    """Return the image of an answer. Raises OutcomeUnknown."""
    text = cast("dict[str, Any]", answer).get("QRCode") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise OutcomeUnknown("M-Pesa's answer has no QR code")
    try:
        content = base64.b64decode("".join(text.removeprefix(_PREFIX).split()), validate=True)
        width, height = read_png(content)
    except NotPng as problem:
        raise OutcomeUnknown(f"M-Pesa's QR code is not a valid PNG image: {problem}") from None
    except (binascii.Error, ValueError):
        raise OutcomeUnknown("M-Pesa's QR code is not valid base64") from None
    if width != height:
        raise OutcomeUnknown("M-Pesa's QR code is not square")
    return QrPicture(content, width)


QR_CODE = Operation(
    name="qr_code",
    path="/mpesa/qrcode/v1/generate",
    request=QrCode,
    read=read_picture,
    # A conversation id in production, 00 in the sandbox: the image decides.
    accepts=None,
)
OPERATIONS = (QR_CODE,)
