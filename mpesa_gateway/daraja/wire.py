"""Readers for the bodies that Daraja sends."""

import json
import re
import unicodedata
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, cast

import msgspec

from mpesa_gateway.clock import EAT, from_daraja_timestamp
from mpesa_gateway.daraja.numerals import canonical, read_number
from mpesa_gateway.daraja.provider_text import LIMIT, provider_text
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn

_RECEIPT = re.compile(r"[A-Z0-9]{6,20}\Z")
_NUMBER = re.compile(r"\+?[0-9*xX]{6,15}")
_MOST_DIGITS = 40
_DECODER = msgspec.json.Decoder(float_hook=str)
"""Decimals stay text: an amount is never a float."""


class InvalidCallback(ValueError):
    """The body is not a callback of the expected kind."""


class ContradictoryCallback(InvalidCallback):
    """A deciding field has two different values."""


class StkCallback(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an STK push; ``paid_at`` is UTC.

    ``amount`` is whole KES or None, ``amount_text`` as received. ``phone`` may be masked. ``is_receipt_unread``:
    present but unreadable.
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
    is_receipt_unread: bool = False


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """Daraja's acknowledgement; the result arrives later at the result URL."""

    originator_conversation_id: str
    conversation_id: str
    response_code: str
    response_description: str


class ResultCallback(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a status query or a reversal, or a queue timeout.

    ``parameters`` keeps every value of a key, as Daraja repeats keys.
    """

    is_final: bool
    result_code: str
    result_desc: str
    originator_conversation_id: str | None
    conversation_id: str | None
    transaction_id: str | None
    parameters: Mapping[str, tuple[str, ...]]

    def first(self, name: str) -> str | None:
        return next(iter(self.parameters.get(name, ())), None)


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a Pull answer: an incoming transaction.

    ``amount`` is whole KES or None. ``moments`` are possible times in UTC, the likeliest first, as Daraja misstates
    zones. ``phone`` may be masked.
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
    """One page of a statement, with one line per receipt.

    A field on which rows of a receipt disagree is None.
    """

    lines: tuple[StatementLine, ...]
    malformed: int
    rows: int


def read_json(body: bytes) -> Any:
    """Decode JSON, with decimals as text. Raises ValueError."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not JSON") from None


def read_json_leniently(body: bytes) -> Any:
    """Decode JSON as Daraja sends it. Raises ValueError.

    Accepts Latin-1 bytes, control characters, lone surrogates, a byte order mark, other Unicode encodings, NaN and
    Infinity (as text), and trailing data.
    """
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _LENIENT_DECODER.raw_decode(_to_text(body).lstrip(_BEFORE_JSON))[0]
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


class DuplicateField(dict[str, Any]):
    """A JSON object in which ``names`` are repeated with different values."""

    names: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None


def read_json_with_duplicates(body: bytes) -> Any:
    """Decode leniently, with a DuplicateField for each object that contradicts itself."""
    try:
        return _DUPLICATE_DECODER.raw_decode(_to_text(body).lstrip(_BEFORE_JSON))[0]
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


def read_answer(body: bytes) -> Any:
    """Decode an answer. Raises ValueError if a fault or ``Response`` contradicts itself.

    Contradictory codes and identifiers are removed. A contradictory statement row stays a DuplicateField; other rows
    remain usable.
    """
    content = read_json_with_duplicates(body)
    pending: list[Any] = [content]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            fields = cast("dict[str, Any]", current)
            for name in fields.names if isinstance(fields, DuplicateField) else ():
                if name.casefold() in _FATAL_FIELDS:
                    raise ValueError(f"{name} is repeated with different values")
                if name in _REMOVABLE_FIELDS:
                    del fields[name]
            pending.extend(value for name, value in fields.items() if name != "Response")
    return content


def _collect_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = {name for name, value in pairs if not is_equal_json(fields[name], value)}
    if not names:
        return fields
    found = DuplicateField(fields)
    found.names = frozenset(names)
    return found


def is_equal_json(one: Any, other: Any) -> bool:
    """Return True for equal JSON values; numerals compare as numbers."""
    if _is_scalar(one) and _is_scalar(other):
        return canonical(str(one)) == canonical(str(other))
    return type(one) is type(other) and bool(one == other)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def read_object(body: bytes) -> dict[str, Any]:
    """Decode an undocumented body leniently, as ``read_json_with_duplicates``. Raises InvalidCallback."""
    try:
        content = read_json_with_duplicates(body)
    except ValueError:
        raise InvalidCallback("not JSON") from None
    if not isinstance(content, dict):
        raise InvalidCallback("not a JSON object")
    return cast("dict[str, Any]", content)


def decode_text(body: bytes) -> str:
    """Return text without NUL; bytes that are not UTF-8 are read as Latin-1."""
    text = _to_text(body)
    return _SURROGATE.sub("\ufffd", text).replace("\x00", "")


def _to_text(body: bytes) -> str:
    encoding = json.detect_encoding(body)
    if encoding.startswith(("utf-16", "utf-32")):
        return body.decode(encoding, "replace")
    text = body.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: found[0].encode("utf-8", "surrogateescape").decode("latin-1"), text)


def to_stored_text(body: bytes) -> tuple[str, bytes | None]:
    """Return a body as text, and its bytes if the text cannot restore them."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return decode_text(body), body
    # PostgreSQL rejects NUL; the body may be another Unicode encoding.
    return (text, None) if "\x00" not in text else (decode_text(body), body)


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _MOST_DIGITS else text


_BEFORE_JSON = "\ufeff \t\r\n\x00"
_ESCAPED = re.compile("[\udc80-\udcff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LENIENT_DECODER = json.JSONDecoder(strict=False, parse_float=str, parse_int=_integer, parse_constant=str)
_DUPLICATE_DECODER = json.JSONDecoder(
    strict=False, parse_float=str, parse_int=_integer, parse_constant=str, object_pairs_hook=_collect_pairs
)
_REMOVABLE_FIELDS = frozenset(
    {"ResponseCode", "ResultCode", "CheckoutRequestID", "MerchantRequestID", "ConversationID"}
    | {"OriginatorConversationID", "access_token", "expires_in"}
)
"""Removed if contradictory."""
_FATAL_FIELDS = frozenset({"response", "errorcode", "errormessage", "fault", "faultstring", "detail"})
"""Make the whole answer unreadable if contradictory. In lower case."""


def read_stk_callback(body: bytes) -> StkCallback:
    """Raises InvalidCallback."""
    callback, pairs = _callback(body, ("Body", "stkCallback"), _STK_FIELDS, "CallbackMetadata", "Item", "Name")
    code = read_code(callback, "ResultCode")
    if code is None:
        raise InvalidCallback("ResultCode is missing")
    items = _items(pairs)
    if code == "0" and not ("amount" in items and "mpesareceiptnumber" in items):
        items = _find_items(body) | items
    amount_text = _stated_text(items.get("amount"))
    receipt = read_receipt(_text(items.get("mpesareceiptnumber")))
    paid_at = _text(items.get("transactiondate"))
    return StkCallback(
        merchant_request_id=_text(callback.get("MerchantRequestID")),
        checkout_request_id=_text(callback.get("CheckoutRequestID")),
        result_code=code,
        result_desc=read_message(callback, "ResultDesc", 500) or "",
        amount=read_amount(amount_text),
        amount_text=amount_text,
        receipt=receipt,
        phone=_digits(_text(items.get("phonenumber"))),
        paid_at=_moment(paid_at) or _only(read_moments(paid_at)),
        is_receipt_unread=receipt is None and _stated_text(items.get("mpesareceiptnumber")) is not None,
    )


def read_result(body: bytes) -> ResultCallback:
    """Raises InvalidCallback."""
    result, pairs = _callback(body, ("Result",), _RESULT_FIELDS, "ResultParameters", "ResultParameter", "Key")
    code = read_code(result, "ResultCode")
    if code is None:
        raise InvalidCallback("Result.ResultCode is missing")
    parameters: dict[str, list[str]] = {}
    for written, value in pairs:
        name = _KNOWN_NAMES.get(_normalise_name(written), written)
        text = _stated_text(value) if name == "Amount" else _text(value)
        if text is None:
            continue
        if name in _SINGLE and name in parameters and not is_equal_json(parameters[name][0], text):
            raise ContradictoryCallback(f"{name} is repeated with different values")
        parameters.setdefault(name, []).append(text)
    return ResultCallback(
        is_final=read_code(result, "ResultType") != "1",
        result_code=code,
        result_desc=read_message(result, "ResultDesc", 500) or "",
        originator_conversation_id=_text(result.get("OriginatorConversationID")),
        conversation_id=_text(result.get("ConversationID")),
        transaction_id=_text(result.get("TransactionID")),
        parameters={name: tuple(texts) for name, texts in parameters.items()},
    )


_STK_FIELDS = frozenset({"ResultCode", "CheckoutRequestID", "MerchantRequestID", "CallbackMetadata"})
_RESULT_FIELDS = frozenset(
    {"ResultType", "ResultCode", "OriginatorConversationID", "ConversationID", "TransactionID", "ResultParameters"}
)
_SINGLE = frozenset({"Amount", "ReceiptNo", "TransactionStatus", "OriginalTransactionID"})
"""Daraja repeats the parties."""


def _callback(
    body: bytes, path: tuple[str, ...], fields: frozenset[str], holder: str, list_name: str, key_name: str
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Msgspec drops duplicates: bodies that may hold some are decoded again."""
    try:
        content = read_json_leniently(body)
        callback = _object_at(content, *path)
        pairs = _pairs(callback.get(holder), list_name, key_name)
        others = _pairs(callback.get("ReferenceData"), "ReferenceItem", key_name)
        if _may_hold_duplicates(body, _quoted(*path, *fields, list_name), _quoted(key_name)[0], [*pairs, *others]):
            callback = _object_at(read_json_with_duplicates(body), *path)
            _reject_duplicates(callback, fields)
            pairs = _pairs(callback.get(holder), list_name, key_name)
    except InvalidCallback:
        raise
    except ValueError:
        raise InvalidCallback("not JSON") from None
    return callback, pairs


def _may_hold_duplicates(body: bytes, names: tuple[bytes, ...], key: bytes, pairs: list[tuple[str, Any]]) -> bool:
    if b"\\u00" in body or b"\x00" in body or body.count(key) != len(pairs):
        return True
    count = body.count
    for name in names:
        if count(name) > 1:
            return True
    return count(_VALUE) != sum([value is not None for _, value in pairs])


_VALUE = b'"Value"'


@cache
def _quoted(*names: str) -> tuple[bytes, ...]:
    return tuple(f'"{name}"'.encode() for name in names)


def _reject_duplicates(fields: Any, names: Collection[str]) -> None:
    if isinstance(fields, DuplicateField) and (found := sorted(fields.names & frozenset(names))):
        raise ContradictoryCallback(f"{found[0]} is repeated with different values")


_KNOWN_NAMES = {
    name.casefold(): name
    for name in (
        "Amount",
        "ReceiptNo",
        "TransactionStatus",
        "DebitPartyName",
        "CreditPartyName",
        "FinalisedTime",
        "OriginalTransactionID",
        "OriginatorConversationID",
    )
}


def read_statement(content: Any) -> StatementPage:
    """Read rows at any depth; unreadable rows are counted."""
    lines: dict[str, list[StatementLine]] = {}
    rows = malformed = 0
    response = cast("dict[str, Any]", content).get("Response") if isinstance(content, dict) else None
    outer: list[Any] = response if isinstance(response, list) else [response]  # pyright: ignore[reportUnknownVariableType] - JSON
    is_flat = any(isinstance(entry, dict) for entry in outer) and not any(isinstance(entry, list) for entry in outer)
    # With a flag that rows are expected here; elsewhere text or null is not a row.
    pending = deque[tuple[Any, bool]]((entry, is_flat) for entry in outer)
    while pending:
        current, is_among_rows = pending.popleft()
        inner = _rows_inside(current)
        if inner is not None:
            pending.extendleft((entry, True) for entry in reversed(inner))
        elif is_among_rows or not (current is None or isinstance(current, str)):
            rows += 1
            line = _statement_line(current)
            if line is None:
                malformed += 1
            else:
                lines.setdefault(line.receipt, []).append(line)
    return StatementPage(lines=tuple(_merge_rows(same) for same in lines.values()), malformed=malformed, rows=rows)


def _merge_rows(rows: list[StatementLine]) -> StatementLine:
    first = rows[0]
    if all(row == first for row in rows):
        return first
    amount, amount_text = first.amount, first.amount_text
    if len({row.amount_text if row.amount is None else row.amount for row in rows}) > 1:
        amount = None
        amount_text = f"one of {', '.join(sorted({row.amount_text for row in rows}))}"[:_MOST_SHOWN] + " KES"
    timed = [row.moments for row in rows if row.moments]
    return StatementLine(
        receipt=first.receipt,
        moments=tuple(at for at in timed[0] if all(at in moments for moments in timed)) if timed else (),
        amount=amount,
        amount_text=amount_text,
        phone=_common_text([row.phone for row in rows]),
        reference=_common_text([row.reference for row in rows]),
        kind=_common_text([row.kind for row in rows]),
        organisation=_common_text([row.organisation for row in rows]),
    )


def _common_text(texts: list[str | None]) -> str | None:
    stated = [text for text in texts if text is not None]
    return stated[0] if len({" ".join(text.split()).casefold() for text in stated}) == 1 else None


def _rows_inside(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return [read_json_with_duplicates(value.encode("utf-8", "surrogatepass"))]
        except ValueError:
            return None
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        inner: list[Any] = [field for field in fields.values() if isinstance(field, list | dict)]
        return inner if inner and "transactionid" not in _lower_names(fields) else None
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType] - JSON


def _statement_line(row: Any) -> StatementLine | None:
    if not isinstance(row, dict):
        return None
    stated = cast("dict[str, Any]", row)
    if isinstance(stated, DuplicateField) and not {name.lower() for name in stated.names}.isdisjoint(_ROW_FIELDS):
        return None
    fields = _lower_names(stated)
    if sum(name.lower() in _ROW_FIELDS for name in stated) > len(_ROW_FIELDS & fields.keys()):
        return None
    receipt = read_receipt(_text(fields.get("transactionid")))
    amount_text = _stated_text(fields.get("amount"))
    moments = read_moments(_text(fields.get("trxdate")))
    if receipt is None or amount_text is None:
        return None
    return StatementLine(
        receipt=receipt,
        moments=moments,
        amount=read_amount(amount_text),
        amount_text=amount_text,
        phone=_digits(_text(fields.get("msisdn"))),
        reference=_text(fields.get("billreference")),
        kind=read_message(fields, "transactiontype"),
        organisation=read_message(fields, "organizationname"),
    )


_ROW_FIELDS = frozenset({"transactionid", "trxdate", "msisdn", "transactiontype", "billreference", "amount"})


def read_receipt(text: str | None) -> str | None:
    """Return the receipt in ASCII capitals and digits, or None."""
    upper = unicodedata.normalize("NFKC", text or "").strip().upper()
    return upper if _RECEIPT.match(upper) else None


def read_payer(parties: Iterable[str]) -> str | None:
    """Return the payer's number from party names such as ``2547… - JANE DOE``.

    Returns None for two different numbers.
    """
    found = {number for party in parties if (number := _payer_number(party)) is not None}
    return found.pop() if len(found) == 1 else None


def _payer_number(party: str) -> str | None:
    found = _NUMBER.match(party.strip())
    if found is None:
        return None
    try:
        return str(Msisdn.parse(found[0]))
    except ValueError:
        return found[0] if "*" in found[0] else None


def read_moments(text: str | None) -> tuple[datetime, ...]:
    """Return the possible times in UTC, East Africa Time first.

    Daraja's ``Z`` is unreliable and has two readings.
    """
    if text is None:
        return ()
    text = _digits(text) or ""
    try:
        moment = _read_date(text)
        if moment.tzinfo is not None and moment.utcoffset():
            return (moment.astimezone(UTC),)
        in_east_africa = moment.replace(tzinfo=EAT).astimezone(UTC)
        return (in_east_africa,) if moment.tzinfo is None else (in_east_africa, moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return ()


_DAY_FIRST = re.compile(
    r"([0-9]{1,2})[./-]([0-9]{1,2})[./-]([0-9]{4})[ T]([0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?)\Z", re.ASCII
)
"""``19.12.2019 11:45:50``"""


_HALF_DAY = re.compile(r"([0-9./-]{8,10}[ T])([0-9]{1,2})(:[0-9]{2}(?::[0-9]{2})?) ?([AaPp])\.?[Mm]\.?\Z", re.ASCII)
"""``19.12.2019 01:45:50 PM``"""


def _read_date(text: str) -> datetime:
    if text.isdigit():
        # strptime reads fewer digits as a different time.
        if len(text) != len("YYYYMMDDHHmmss"):
            raise ValueError("not YYYYMMDDHHmmss")
        return datetime.strptime(text, "%Y%m%d%H%M%S")  # noqa: DTZ007 - the caller adds the zone
    text = text.removesuffix("EAT").rstrip()
    if found := _HALF_DAY.match(text):
        date, hour, rest, half = found.groups()
        if not 1 <= int(hour) <= 12:
            raise ValueError("not a time with AM or PM")
        text = f"{date}{int(hour) % 12 + (12 if half in 'pP' else 0):02}{rest}"
    if found := _DAY_FIRST.match(text):
        day, month, year, hours = found.groups()
        text = f"{year}-{month:0>2}-{day:0>2} {hours if hours[1] != ':' else '0' + hours}"
    return datetime.fromisoformat(text)


def _object_at(content: Any, *names: str) -> dict[str, Any]:
    for name in names:
        if type(content) is DuplicateField:
            _reject_duplicates(content, (name,))
        content = cast("dict[str, Any]", content).get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise InvalidCallback(f"{'.'.join(names)} is missing")
    return cast("dict[str, Any]", content)


def _items(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for written, value in pairs:
        name = _normalise_name(written)
        if value is None or value == "":
            continue
        if name in _ITEMS and name in found and not is_equal_json(found[name], value):
            raise ContradictoryCallback(f"{written} is repeated with different values")
        found.setdefault(name, value)
    return found


_ITEMS = frozenset({"amount", "mpesareceiptnumber", "phonenumber"})


def _find_items(body: bytes) -> dict[str, Any]:
    """Return items with an unusual place or name.

    A missed amount would complete a payment of a different one. Raises ContradictoryCallback.
    """
    found: dict[str, Any] = {}
    plain = body.lower()
    if plain.isascii() and not any(part in plain for part in _ITEM_MARKS):
        return found
    try:
        pending = deque[tuple[str, Any]]((("", read_json_with_duplicates(body)),))
    except ValueError:
        return found
    while pending:
        name, value = pending.popleft()
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            with suppress(ValueError):
                value = read_json_with_duplicates(value.encode("utf-8", "surrogatepass"))
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            _reject_duplicates(
                fields, [one for one in fields if _match_item(one) or _normalise_name(one) in _AROUND_ITEMS]
            )
            pending.extend(_named_fields(fields, name))
        elif isinstance(value, list):
            pending.extend((name, each) for each in value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
        elif (item := _match_item(name)) is not None and _stated_text(value) is not None:
            if item in found and not is_equal_json(found[item], value):
                raise ContradictoryCallback(f"{item} is repeated with different values")
            found[item] = value
    return found


def _named_fields(fields: dict[str, Any], around: str) -> list[tuple[str, Any]]:
    names = [key for key, text in fields.items() if isinstance(text, str) and key != "ResultDesc" and _match_item(text)]
    if names:
        return [(fields[names[0]], value) for key, value in fields.items() if key not in names]
    return [(key if _match_item(key) else around, value) for key, value in fields.items() if key != "ResultDesc"]


def _match_item(name: str) -> str | None:
    if len(name) > _LONGEST_NAME:
        return None
    plain = _normalise_name(unicodedata.normalize("NFKC", name))
    return next((item for part, item in _PARTS_OF_NAMES.items() if part in plain), None)


_LONGEST_NAME = 40
_PARTS_OF_NAMES = {"amount": "amount", "receipt": "mpesareceiptnumber"}
_ITEM_MARKS = (b"amount", b"receipt", b"\\u", b"\x00")
"""An ASCII body without one of these has no further items."""
_AROUND_ITEMS = frozenset({"name", "key", "value", "item", "items", "callbackmetadata"})


def _pairs(holder: Any, list_name: str, key_name: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    pending = deque[Any]((holder,))
    while pending:
        current = pending.popleft()
        if isinstance(current, list):
            pending.extendleft(reversed(current))  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif isinstance(current, dict):
            entry = cast("dict[str, Any]", current)
            if type(entry) is DuplicateField:
                _reject_duplicates(entry, (key_name, "Value", list_name))
            name = entry.get(key_name)
            if isinstance(name, str):
                found.append((name.strip(), entry.get("Value")))
            elif list_name in entry:
                pending.appendleft(entry[list_name])
    return found


def _normalise_name(written: str) -> str:
    return "".join(written.split()).casefold()


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int) and value.bit_length() > _MOST_DIGITS * 3:
        return None
    text = str(value)
    if not text.isprintable():
        text = _SURROGATE.sub("\ufffd", text).replace("\x00", "")
    return text.strip()[:500] or None


def _stated_text(value: Any) -> str | None:
    """Return the stated amount as text, None only if absent.

    Merchants see it, so other text is masked.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    text = _text(f"{value}" if isinstance(value, bool | list | dict) else value) or "a number of too many digits"
    if _read_money(text) is not None:
        return text
    shown = provider_text(text, _MOST_SHOWN) or "unreadable"
    # Removing hidden characters must not produce a number.
    return f"{shown} and hidden characters" if _read_money(shown) is not None else shown


_MOST_SHOWN = 64


def read_amount(text: str | None) -> Kes | None:
    """Return whole KES from ``500``, ``"500.00"``, ``5e2``, ``"1,500.00"``.

    Returns None for cents, negative numbers, currencies, spaces and ambiguous commas.
    """
    number = None if text is None else _read_money(text.strip())
    if number is None or number != number.to_integral_value() or not 0 <= number < _MOST_KES:
        return None
    return Kes(int(number))


def read_cents(text: str | None) -> int | None:
    """Return KES with or without cents as cents, from the forms of ``read_amount`` and ``"1,500.50"``.

    Returns None for 0, for parts of a cent and from KES 2,147,483,648: M-Pesa moves 250,000 at once.
    """
    number = None if text is None else _read_money(text.strip())
    if number is None or not 0 < number < _MOST_WITH_CENTS or number * 100 != (number * 100).to_integral_value():
        return None
    return int(number * 100)


_MOST_WITH_CENTS = 2**31


def _read_money(text: str) -> Decimal | None:
    return read_number(text.replace(",", "") if _GROUPED.match(text) else text)


_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+\.[0-9]{1,2}|(?:,[0-9]{3}){2,})\Z", re.ASCII)
"""The comma in ``1,000`` may be a decimal comma."""

_MOST_KES = 10**12


def _digits(text: str | None) -> str | None:
    return text if text is None or text.isdigit() else canonical(text)


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else from_daraja_timestamp(_digits(text) or "")
    except (ValueError, OverflowError):
        return None


def _only(readings: tuple[datetime, ...]) -> datetime | None:
    return readings[0] if len(readings) == 1 else None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """An error answer."""

    code: str | None
    message: str | None


def read_fault_body(content: Any) -> Fault:
    """Read a fault of Daraja or of its API proxy."""
    if not isinstance(content, dict):
        return Fault(code=None, message=None)
    fields = _lower_names(cast("dict[str, Any]", content))
    code, message = _text(fields.get("errorcode")), _text(fields.get("errormessage"))
    if code is None and message is None:
        fault = _proxy_fault(fields)
        if isinstance(fault, dict):
            fault = _lower_names(cast("dict[str, Any]", fault))
            code, message = _proxy_code(fault), _text(fault.get("faultstring"))
        else:
            message = _text(fault)
    return Fault(code=code, message=message)


def _lower_names(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in fields.items()}


def _proxy_fault(fields: dict[str, Any]) -> Any:
    """The proxy sends JSON or a SOAP envelope converted to JSON."""
    if "fault" in fields:
        return fields["fault"]
    for name in ("envelope", "body", "fault"):
        inner = fields.get(name)
        if not isinstance(inner, dict):
            return None
        fields = _lower_names(cast("dict[str, Any]", inner))
    return fields


def _proxy_code(fault: dict[str, Any]) -> str | None:
    detail = fault.get("detail")
    if not isinstance(detail, dict):
        return None
    detail = _lower_names(cast("dict[str, Any]", detail))
    if isinstance(source := detail.get("source"), dict):
        detail = _lower_names(cast("dict[str, Any]", source))
    return read_text(detail, "errorcode")


def read_code(content: Any, name: str) -> str | None:
    """Return a canonical code, or None if absent or not a number."""
    text = read_text(content, name)
    if text is None or text in _NOT_A_NUMBER or len(text) > _LONGEST_CODE:
        return None
    return canonical(text) if _CODE.match(text) else provider_text(text, _LONGEST_CODE) or None


_LONGEST_CODE = 64
_CODE = re.compile(r"(?![0-9]{10})[A-Za-z0-9_.+-]+\Z", re.ASCII)
"""Other codes are masked like text."""
_NOT_A_NUMBER = frozenset({"NaN", "Infinity", "-Infinity"})


def read_message(content: Any, name: str, limit: int = LIMIT) -> str | None:
    """Return M-Pesa's text, masked, or None."""
    text = read_text(content, name)
    return None if text is None else provider_text(text, limit) or None


def read_text(content: Any, name: str) -> str | None:
    """Return a field as text, or None if absent or not a scalar."""
    return _text(cast("dict[str, Any]", content).get(name)) if isinstance(content, dict) else None


_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORDS = re.compile(r"[a-z0-9']+")
_NOUNS = frozenset(
    {"transaction", "transactions", "txn", "txns", "trx", "record", "records", "row", "rows", "entry", "entries"}
    | {"payment", "payments", "data", "result", "results", "activity", "activities", "deposit", "deposits"}
)
_NONE = frozenset({"no", "zero", "0", "without", "lack", "lacks", "nil", "none", "nothing", "empty"})
_NOT = frozenset({"not", "cannot", "never"})
_EXIST = frozenset({"transacted", "found", "exist", "exists", "present", "recorded", "made"})
_FOUND_WORDS = frozenset({"found", "fetched", "returned", "retrieved", "shortcode"})
_OTHER_THAN_MONEY = frozenset(
    {"access", "all", "answer", "by", "connection", "every", "from", "permission", "reply", "response", "to", "valid"}
)
"""Words that relate a negation to something else."""

_ERROR_WORDS = frozenset(
    {"busy", "denied", "error", "errors", "exception", "fail", "failed", "failure", "internal", "invalid"}
    | {"maintenance", "timeout", "timed", "unable", "unauthorised", "unauthorized", "unavailable"}
)
_PREFIX = frozenset({"error", "failed", "failure", "occurred", "bad", "request", "internal", "server"})
_VERBS = ("access", "allow", "authori", "complet", "connect", "enabl", "fetch", "get", "load", "permit", "process")
_MORE_VERBS = ("pull", "query", "quer", "read", "register", "retriev")
_NEAR, _MOST_TEXT = 7, 1000


def says_no_transactions(text: str) -> bool:
    """Return True if the text says that there are no transactions, and mentions no error.

    Returns False if in doubt: a missing answer is not an empty one.
    """
    text = _CAMEL.sub(" ", text[:_MOST_TEXT])
    words = _WORDS.findall(text.lower().replace("\u2019", "'"))
    while words and words[0] in _PREFIX:
        words = words[1:]
    if not _ERROR_WORDS.isdisjoint(words) or any(_is_unable(words, at) for at in range(len(words))):
        return False
    return any(_denies(words, at) for at in range(len(words)))


def _is_not(word: str) -> bool:
    return word in _NOT or word.endswith("n't")


def _is_unable(words: list[str], at: int) -> bool:
    if not _is_not(words[at]):
        return False
    rest = [word for word in words[at + 1 : at + 4] if word not in {"be", "been"}]
    return bool(rest) and rest[0].startswith(_VERBS + _MORE_VERBS) and "any" not in rest[1:2]


def _denies(words: list[str], at: int) -> bool:
    if words[at] in _NOUNS:
        after = words[at + 1 : at + _NEAR]
        found = any(_is_not(word) and _EXIST & set(after[place + 1 : place + 3]) for place, word in enumerate(after))
        return found or bool({"none", "nil", "zero", "0", "empty"} & set(after))
    if words[at] not in _NONE and not _is_not(words[at]):
        return False
    ahead = words[at + 1 : at + 1 + _NEAR]
    noun = next((place for place, word in enumerate(ahead) if word in _NOUNS), None)
    if noun is not None:
        # “No result from the server” concerns the answer.
        return _OTHER_THAN_MONEY.isdisjoint(ahead if ahead[noun].startswith("result") else ahead[:noun])
    if words[at] == "never":
        return "transacted" in ahead[:2]
    return words[at] in {"nothing", "none", "empty"} and bool(_FOUND_WORDS & set(ahead))
