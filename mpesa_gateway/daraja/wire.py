"""What goes over Daraja's wire: read in every shape it has been seen in, and refused when it is something else."""

import re
from datetime import datetime
from typing import Any, cast

import msgspec

from mpesa_gateway.clock import from_daraja_timestamp
from mpesa_gateway.money import Kes, NotAnAmount

_RECEIPT = re.compile(r"[A-Z0-9]{6,20}\Z")
_MOST_DIGITS = 40
_READER = msgspec.json.Decoder(float_hook=str)
"""Numbers with a point stay the text that they are: no float ever sees an amount."""


class NotACallback(ValueError):
    """The body is no callback of this kind. The text says what is wrong with it."""


class StkAck(msgspec.Struct, frozen=True, kw_only=True):
    """Daraja took a push: the prompt is on its way. Nothing has been paid."""

    merchant_request_id: str
    checkout_request_id: str
    customer_message: str


class StkCallback(msgspec.Struct, frozen=True, kw_only=True):
    """How a push ended.

    ``amount`` is in KES, None when absent or not whole; ``amount_text`` is what stood there. ``phone`` is digits or
    masked, ``paid_at`` UTC (the wire has East Africa Time), each None when absent or unreadable.
    """

    merchant_request_id: str | None
    checkout_request_id: str | None
    result_code: str
    result_desc: str
    amount: Kes | None
    amount_text: str | None
    receipt: str | None
    phone: str | None
    paid_at: datetime | None


def read_json(body: bytes) -> Any:
    """JSON with its numbers as they stand: integers, and decimals as text. Raises ValueError."""
    try:
        return _READER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not JSON") from None


def read_stk_callback(body: bytes) -> StkCallback:
    """Read an STK callback, in any of the shapes it comes in. Raises NotACallback."""
    try:
        content = read_json(body)
    except ValueError:
        raise NotACallback("not JSON") from None
    callback = _inner(content, "Body", "stkCallback")
    code = _text(callback.get("ResultCode"))
    if code is None:
        raise NotACallback("ResultCode is missing")
    items = _items(callback.get("CallbackMetadata"), "Item", "Name")
    amount_text = _text(items.get("Amount"))
    receipt = (_text(items.get("MpesaReceiptNumber")) or "").upper()
    return StkCallback(
        merchant_request_id=_text(callback.get("MerchantRequestID")),
        checkout_request_id=_text(callback.get("CheckoutRequestID")),
        result_code=code,
        result_desc=_text(callback.get("ResultDesc")) or "",
        amount=_amount(amount_text),
        amount_text=amount_text,
        receipt=receipt if _RECEIPT.match(receipt) else None,
        phone=_text(items.get("PhoneNumber")),
        paid_at=_moment(_text(items.get("TransactionDate"))),
    )


def _inner(content: Any, *names: str) -> dict[str, Any]:
    for name in names:
        content = cast("dict[str, Any]", content).get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise NotACallback(f"{'.'.join(names)} is missing")
    return cast("dict[str, Any]", content)


def _items(holder: Any, list_name: str, key_name: str) -> dict[str, Any]:
    """Named values, from a list of them or a single one standing where the list should be."""
    found: dict[str, Any] = {}
    items = cast("dict[str, Any]", holder).get(list_name) if isinstance(holder, dict) else None
    entries: list[Any] = items if isinstance(items, list) else [items]  # pyright: ignore[reportUnknownVariableType] - JSON
    for item in entries:
        if isinstance(item, dict):
            entry = cast("dict[str, Any]", item)
            name = entry.get(key_name)
            if isinstance(name, str):
                found.setdefault(name, entry.get("Value"))
    return found


def _text(value: Any) -> str | None:
    """A value as text, trimmed; None for what is absent, empty, or no plain value."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int) and value.bit_length() > _MOST_DIGITS * 3:
        return None
    text = str(value).strip().replace("\x00", "")
    return text[:500] or None


def _amount(text: str | None) -> Kes | None:
    try:
        return None if text is None else Kes.parse(text)
    except NotAnAmount:
        return None


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else from_daraja_timestamp(text)
    except ValueError:
        return None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Daraja's error answer."""

    code: str | None
    message: str | None


def read_fault_body(content: Any) -> Fault:
    """The code and message of an error answer, None where it has none."""
    if not isinstance(content, dict):
        return Fault(code=None, message=None)
    fields = cast("dict[str, Any]", content)
    return Fault(code=_text(fields.get("errorCode")), message=_text(fields.get("errorMessage")))


def read_text(content: Any, name: str) -> str | None:
    """A field of an answer as text, None when it is absent or no plain value."""
    return _text(cast("dict[str, Any]", content).get(name)) if isinstance(content, dict) else None
