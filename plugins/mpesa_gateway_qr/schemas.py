"""Wire schemas of QR codes."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.http.field_rules import AMOUNT, printable

Size = Annotated[int, msgspec.Meta(ge=100, le=1000)]
"""Pixels of a side."""

DEFAULT_SIZE = 300


class PaymentQrOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A QR code of a payment. ``size`` is in pixels."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"size": 300}

    size: Size = DEFAULT_SIZE


class ShortcodeQrOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A QR code of a shortcode. ``size`` is in pixels; payers see ``reference`` as the account number."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "amount": AMOUNT,
        "reference": printable(20, ": the payer sees it as the account", examples=["HOUSE 7B"]),
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"amount": "500.00", "reference": "HOUSE 7B", "size": 300}

    amount: msgspec.Raw
    reference: str | None = None
    size: Size = DEFAULT_SIZE


class QrView(msgspec.Struct, frozen=True, kw_only=True):
    """A QR code: base64 of a PNG image, ``size`` pixels wide and high.

    A scan proves nothing: wait for the payment's webhook.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "qr_code": "iVBORw0KGgo…",
        "media_type": "image/png",
        "size": 300,
    }

    qr_code: str
    media_type: Literal["image/png"] = "image/png"
    size: int
