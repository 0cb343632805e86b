"""What goes over Daraja's wire: read in every shape it has been seen in, and refused when it is something else."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from mpesa_gateway.clock import EAT, from_daraja_timestamp
from mpesa_gateway.money import Kes, NotAnAmount
from mpesa_gateway.phone import Msisdn

_RECEIPT = re.compile(r"[A-Z0-9]{6,20}\Z")
_NUMBER = re.compile(r"\+?[0-9*xX]{6,15}")
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


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """Daraja took a question or a reversal, by its own names. The result comes later, to the result URL."""

    originator_conversation_id: str
    conversation_id: str
    response_code: str
    response_description: str


class ResultCallback(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction status query or a reversal brought, or that Daraja's queue timed out.

    ``parameters`` has every value of each key, in order: Daraja has been seen to give one key twice.
    """

    is_final: bool
    result_code: str
    result_desc: str
    originator_conversation_id: str | None
    conversation_id: str | None
    transaction_id: str | None
    parameters: Mapping[str, tuple[str, ...]]

    def first(self, name: str) -> str | None:
        """The first value of a parameter, None when it is absent or empty."""
        return next(iter(self.parameters.get(name, ())), None)


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a Pull answer: money that came in, whoever asked for it.

    ``amount`` is in KES, None when it is not whole (``amount_text`` is what stood there). ``moments`` are the readings
    of its time in UTC, the likelier first: Daraja's zone has been seen to be missing and to be wrong. ``phone`` is what
    the row shows of the payer's number.
    """

    receipt: str
    moments: tuple[datetime, ...]
    amount: Kes | None
    amount_text: str
    phone: str | None
    reference: str | None
    kind: str | None
    organisation: str | None


class StatementPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a statement: its readable lines, how many were unreadable, and how many rows it had at all."""

    lines: tuple[StatementLine, ...]
    malformed: int
    rows: int


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
    return StkCallback(
        merchant_request_id=_text(callback.get("MerchantRequestID")),
        checkout_request_id=_text(callback.get("CheckoutRequestID")),
        result_code=code,
        result_desc=_text(callback.get("ResultDesc")) or "",
        amount=_amount(amount_text),
        amount_text=amount_text,
        receipt=read_receipt(_text(items.get("MpesaReceiptNumber"))),
        phone=_text(items.get("PhoneNumber")),
        paid_at=_moment(_text(items.get("TransactionDate"))),
    )


def read_result(body: bytes) -> ResultCallback:
    """Read the result of a status query or a reversal, in any of the shapes it comes in. Raises NotACallback."""
    try:
        content = read_json(body)
    except ValueError:
        raise NotACallback("not JSON") from None
    result = _inner(content, "Result")
    code = _text(result.get("ResultCode"))
    if code is None:
        raise NotACallback("Result.ResultCode is missing")
    parameters: dict[str, tuple[str, ...]] = {}
    for name, value in _pairs(result.get("ResultParameters"), "ResultParameter", "Key"):
        text = _text(value)
        if text is not None:
            parameters[name] = (*parameters.get(name, ()), text)
    return ResultCallback(
        is_final=_text(result.get("ResultType")) != "1",
        result_code=code,
        result_desc=_text(result.get("ResultDesc")) or "",
        originator_conversation_id=_text(result.get("OriginatorConversationID")),
        conversation_id=_text(result.get("ConversationID")),
        transaction_id=_text(result.get("TransactionID")),
        parameters=parameters,
    )


def read_statement(content: Any) -> StatementPage:
    """The rows of a Pull answer, however deep they are nested; a row that cannot be read is counted and passed over."""
    lines: list[StatementLine] = []
    rows = malformed = 0
    waiting: list[Any] = [cast("dict[str, Any]", content).get("Response")] if isinstance(content, dict) else []
    while waiting:
        current = waiting.pop(0)
        if isinstance(current, list):
            waiting[:0] = current
        elif current is not None and not isinstance(current, str):
            rows += 1
            line = _statement_line(current)
            if line is None:
                malformed += 1
            else:
                lines.append(line)
    return StatementPage(lines=tuple(lines), malformed=malformed, rows=rows)


def _statement_line(row: Any) -> StatementLine | None:
    if not isinstance(row, dict):
        return None
    fields = cast("dict[str, Any]", row)
    receipt = read_receipt(_text(fields.get("transactionId")))
    amount_text = _text(fields.get("amount"))
    moments = read_moments(_text(fields.get("trxDate")))
    if receipt is None or amount_text is None or not moments:
        return None
    return StatementLine(
        receipt=receipt,
        moments=moments,
        amount=_amount(amount_text),
        amount_text=amount_text,
        phone=_text(fields.get("msisdn")),
        reference=_text(fields.get("billreference")),
        kind=_text(fields.get("transactiontype")),
        organisation=_text(fields.get("organizationname")),
    )


def read_receipt(text: str | None) -> str | None:
    """A receipt in its one form, capitals and digits; None for anything else."""
    upper = (text or "").strip().upper()
    return upper if _RECEIPT.match(upper) else None


def read_payer(parties: Iterable[str]) -> str | None:
    """The payer's number from the parties as Daraja names them, ``2547… - JANE DOE``; one of them may be a shop."""
    for party in parties:
        found = _NUMBER.match(party.strip())
        if found is None:
            continue
        try:
            return str(Msisdn.parse(found[0]))
        except ValueError:
            if "*" in found[0]:
                return found[0]
    return None


def read_moments(text: str | None) -> tuple[datetime, ...]:
    """The readings of a time in UTC, East Africa Time first: one without a zone, two with a Z, which is not trusted."""
    if text is None:
        return ()
    try:
        moment = datetime.strptime(text, "%Y%m%d%H%M%S") if text.isdigit() else datetime.fromisoformat(text)  # noqa: DTZ007
        if moment.tzinfo is not None and moment.utcoffset():
            return (moment.astimezone(UTC),)
        in_east_africa = moment.replace(tzinfo=EAT).astimezone(UTC)
        return (in_east_africa,) if moment.tzinfo is None else (in_east_africa, moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return ()


def _inner(content: Any, *names: str) -> dict[str, Any]:
    for name in names:
        content = cast("dict[str, Any]", content).get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise NotACallback(f"{'.'.join(names)} is missing")
    return cast("dict[str, Any]", content)


def _items(holder: Any, list_name: str, key_name: str) -> dict[str, Any]:
    """Named values, the first of each name."""
    found: dict[str, Any] = {}
    for name, value in _pairs(holder, list_name, key_name):
        found.setdefault(name, value)
    return found


def _pairs(holder: Any, list_name: str, key_name: str) -> list[tuple[str, Any]]:
    """Names and values, from a list of them or a single one standing where the list should be."""
    found: list[tuple[str, Any]] = []
    items = cast("dict[str, Any]", holder).get(list_name) if isinstance(holder, dict) else None
    entries: list[Any] = items if isinstance(items, list) else [items]  # pyright: ignore[reportUnknownVariableType] - JSON
    for item in entries:
        if isinstance(item, dict):
            entry = cast("dict[str, Any]", item)
            name = entry.get(key_name)
            if isinstance(name, str):
                found.append((name, entry.get("Value")))
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
