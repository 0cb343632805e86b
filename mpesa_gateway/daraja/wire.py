"""What goes over Daraja's wire: read in every shape it has been seen in, and refused when it is something else."""

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
_READER = msgspec.json.Decoder(float_hook=str)
"""Numbers with a point stay the text that they are: no float ever sees an amount."""


class InvalidCallback(ValueError):
    """The body is no callback of this kind. The text says what is wrong with it."""


class ContradictoryCallback(InvalidCallback):
    """A field that decides stands in the body twice, with different values: the body is no evidence of either."""


class StkCallback(msgspec.Struct, frozen=True, kw_only=True):
    """How a push ended.

    ``amount`` is in KES, None when absent or not whole; ``amount_text`` is what stood there. ``phone`` is digits or
    masked, ``paid_at`` UTC (the wire has East Africa Time), each None when absent or unreadable. ``is_receipt_unread``
    says that a receipt is stated and cannot be read.
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
    of its time in UTC, the likelier first: Daraja's zone has been seen to be missing and to be wrong. There are none of
    a time that cannot be read. ``phone`` is what the row shows of the payer's number.
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
    """One page of a statement: its readable lines, how many were unreadable, and how many rows it had at all.

    Each receipt is there once. What two of its rows state differently is in none of them: neither row proves it.
    """

    lines: tuple[StatementLine, ...]
    malformed: int
    rows: int


def read_json(body: bytes) -> Any:
    """JSON with its numbers as they stand: integers, and decimals as text. Raises ValueError."""
    try:
        return _READER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not JSON") from None


def read_json_leniently(body: bytes) -> Any:
    """JSON as it really arrives, its numbers as they stand. Raises ValueError where no JSON value begins the body.

    Accepts what strict JSON forbids and Daraja has sent: Latin-1 bytes, control characters in texts, halves of
    surrogate pairs, a byte order mark, other Unicode encodings, NaN and Infinity (as texts, which no number reads),
    and anything after the end.
    """
    try:
        return _READER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _LENIENT.raw_decode(_decoded(body).lstrip(_BEFORE_JSON))[0]
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


class DuplicateField(dict[str, Any]):
    """A JSON object in which ``names`` stand more than once, with different values. The last values are its own."""

    names: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:
        """An object that contradicts itself equals no other."""
        return self is other

    __hash__ = None


def read_json_with_duplicates(body: bytes) -> Any:
    """Like ``read_json_leniently``, with a Doubled for each object that contradicts itself. Raises ValueError."""
    try:
        return _NOTING.raw_decode(_decoded(body).lstrip(_BEFORE_JSON))[0]
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


def read_answer(body: bytes) -> Any:
    """The JSON of an answer of Daraja's. Raises ValueError, also where a fault or a whole statement contradicts itself.

    A code or a name that stands twice with different values is absent: what else the answer says of the request, such
    as the name of its push, stays. A row of a statement that contradicts itself stays a Doubled: it does not spoil the
    other rows.
    """
    content = read_json_with_duplicates(body)
    waiting: list[Any] = [content]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            fields = cast("dict[str, Any]", current)
            for name in fields.names if isinstance(fields, DuplicateField) else ():
                if name.casefold() in _WHOLE:
                    raise ValueError(f"{name} stands in it twice, with different values")
                if name in _SAID_ONCE:
                    del fields[name]
            waiting.extend(value for name, value in fields.items() if name != "Response")
    return content


def _noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = {name for name, value in pairs if not is_same(fields[name], value)}
    if not names:
        return fields
    found = DuplicateField(fields)
    found.names = frozenset(names)
    return found


def is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, numbers and numerals as numbers."""
    if _is_plain(one) and _is_plain(other):
        return canonical(str(one)) == canonical(str(other))
    return type(one) is type(other) and bool(one == other)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def decoded(body: bytes) -> str:
    """A body as text for people and for storage: each byte that is no UTF-8 as its Latin-1 character, no NUL."""
    text = _decoded(body)
    return _SURROGATE.sub("\ufffd", text).replace("\x00", "")


def _decoded(body: bytes) -> str:
    encoding = json.detect_encoding(body)
    if encoding.startswith(("utf-16", "utf-32")):
        return body.decode(encoding, "replace")
    text = body.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: found[0].encode("utf-8", "surrogateescape").decode("latin-1"), text)


def stored_json(body: bytes) -> tuple[str, bytes | None]:
    """A body as text for storage, and its bytes where the text does not give them back."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return decoded(body), body
    # Text with NUL cannot be stored, and may be another Unicode encoding.
    return (text, None) if "\x00" not in text else (decoded(body), body)


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _MOST_DIGITS else text


_BEFORE_JSON = "\ufeff \t\r\n\x00"
_ESCAPED = re.compile("[\udc80-\udcff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LENIENT = json.JSONDecoder(strict=False, parse_float=str, parse_int=_integer, parse_constant=str)
_NOTING = json.JSONDecoder(
    strict=False, parse_float=str, parse_int=_integer, parse_constant=str, object_pairs_hook=_noted
)
_SAID_ONCE = frozenset(
    {"ResponseCode", "ResultCode", "CheckoutRequestID", "MerchantRequestID", "ConversationID"}
    | {"OriginatorConversationID", "access_token", "expires_in"}
)
"""The fields of an answer that are absent where they contradict themselves."""
_WHOLE = frozenset({"response", "errorcode", "errormessage", "fault", "faultstring", "detail"})
"""Those without which the rest of an answer could mean something else, in lower case."""


def read_stk_callback(body: bytes) -> StkCallback:
    """Read an STK callback, in any of the shapes it comes in. Raises InvalidCallback."""
    callback, pairs = _callback(body, ("Body", "stkCallback"), _STK_FIELDS, "CallbackMetadata", "Item", "Name")
    code = read_code(callback, "ResultCode")
    if code is None:
        raise InvalidCallback("ResultCode is missing")
    items = _items(pairs)
    if code == "0" and not ("amount" in items and "mpesareceiptnumber" in items):
        items = _elsewhere(body) | items
    amount_text = _stated(items.get("amount"))
    receipt = read_receipt(_text(items.get("mpesareceiptnumber")))
    return StkCallback(
        merchant_request_id=_text(callback.get("MerchantRequestID")),
        checkout_request_id=_text(callback.get("CheckoutRequestID")),
        result_code=code,
        result_desc=read_message(callback, "ResultDesc", 500) or "",
        amount=read_amount(amount_text),
        amount_text=amount_text,
        receipt=receipt,
        phone=_digits(_text(items.get("phonenumber"))),
        paid_at=_moment(_text(items.get("transactiondate"))),
        is_receipt_unread=receipt is None and _stated(items.get("mpesareceiptnumber")) is not None,
    )


def read_result(body: bytes) -> ResultCallback:
    """Read the result of a status query or a reversal, in any of the shapes it comes in. Raises InvalidCallback."""
    result, pairs = _callback(body, ("Result",), _RESULT_FIELDS, "ResultParameters", "ResultParameter", "Key")
    code = read_code(result, "ResultCode")
    if code is None:
        raise InvalidCallback("Result.ResultCode is missing")
    parameters: dict[str, list[str]] = {}
    for written, value in pairs:
        name = _KNOWN_NAMES.get(_name(written), written)
        text = _stated(value) if name == "Amount" else _text(value)
        if text is None:
            continue
        if name in _SINGLE and name in parameters and not is_same(parameters[name][0], text):
            raise ContradictoryCallback(f"{name} is stated twice, with different values")
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
"""Parameters that are stated once. Daraja has been seen to name each party twice."""


def _callback(
    body: bytes, path: tuple[str, ...], fields: frozenset[str], holder: str, list_name: str, key_name: str
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The object at the path, and the names and values below ``holder``. Raises InvalidCallback.

    JSON is decoded by msgspec, which keeps the last of two fields with one name. Only where the bytes could hold more
    names than were decoded is the body decoded again, by a decoder that sees them all.
    """
    try:
        content = read_json_leniently(body)
        callback = _inner(content, *path)
        pairs = _pairs(callback.get(holder), list_name, key_name)
        others = _pairs(callback.get("ReferenceData"), "ReferenceItem", key_name)
        if _may_double(body, _quoted(*path, *fields, list_name), _quoted(key_name)[0], [*pairs, *others]):
            callback = _inner(read_json_with_duplicates(body), *path)
            _refuse_doubled(callback, fields)
            pairs = _pairs(callback.get(holder), list_name, key_name)
    except InvalidCallback:
        raise
    except ValueError:
        raise InvalidCallback("not JSON") from None
    return callback, pairs


def _may_double(body: bytes, names: tuple[bytes, ...], key: bytes, pairs: list[tuple[str, Any]]) -> bool:
    """Whether one of these names could stand twice in one object. A name can be escaped, or encoded otherwise."""
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


def _refuse_doubled(fields: Any, names: Collection[str]) -> None:
    if isinstance(fields, DuplicateField) and (found := sorted(fields.names & frozenset(names))):
        raise ContradictoryCallback(f"{found[0]} stands there twice, with different values")


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
    )
}
"""The parameters that are read, by their names as they are compared."""


def read_statement(content: Any) -> StatementPage:
    """The rows of a Pull answer, however deep they are nested; a row that cannot be read is counted and passed over."""
    lines: dict[str, list[StatementLine]] = {}
    rows = malformed = 0
    response = cast("dict[str, Any]", content).get("Response") if isinstance(content, dict) else None
    outer: list[Any] = response if isinstance(response, list) else [response]  # pyright: ignore[reportUnknownVariableType] - JSON
    is_flat = any(isinstance(entry, dict) for entry in outer) and not any(isinstance(entry, list) for entry in outer)
    # Each with whether rows are expected there: a text or nothing in place of a list of rows is none.
    waiting = deque[tuple[Any, bool]]((entry, is_flat) for entry in outer)
    while waiting:
        current, is_among_rows = waiting.popleft()
        inner = _rows_inside(current)
        if inner is not None:
            waiting.extendleft((entry, True) for entry in reversed(inner))
        elif is_among_rows or not (current is None or isinstance(current, str)):
            rows += 1
            line = _statement_line(current)
            if line is None:
                malformed += 1
            else:
                lines.setdefault(line.receipt, []).append(line)
    return StatementPage(lines=tuple(_common(same) for same in lines.values()), malformed=malformed, rows=rows)


def _common(rows: list[StatementLine]) -> StatementLine:
    """What the rows of one receipt prove together. What only some of them state contradicts nothing."""
    first = rows[0]
    if all(row == first for row in rows):
        return first
    amount, amount_text = first.amount, first.amount_text
    if len({row.amount_text if row.amount is None else row.amount for row in rows}) > 1:
        amount = None
        amount_text = f"one of {', '.join(sorted({row.amount_text for row in rows}))}"[:_SHOWN] + " KES"
    timed = [row.moments for row in rows if row.moments]
    return StatementLine(
        receipt=first.receipt,
        moments=tuple(at for at in timed[0] if all(at in moments for moments in timed)) if timed else (),
        amount=amount,
        amount_text=amount_text,
        phone=_stated_alike([row.phone for row in rows]),
        reference=_stated_alike([row.reference for row in rows]),
        kind=_stated_alike([row.kind for row in rows]),
        organisation=_stated_alike([row.organisation for row in rows]),
    )


def _stated_alike(texts: list[str | None]) -> str | None:
    """The text that all agree in which state one, regardless of case and spaces; None where two differ."""
    stated = [text for text in texts if text is not None]
    return stated[0] if len({" ".join(text.split()).casefold() for text in stated}) == 1 else None


def _rows_inside(value: Any) -> list[Any] | None:
    """What stands in a list, in an object around lists or objects, or in a JSON text; None for a row and the rest."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return [read_json_with_duplicates(value.encode("utf-8", "surrogatepass"))]
        except ValueError:
            return None
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        inner: list[Any] = [field for field in fields.values() if isinstance(field, list | dict)]
        return inner if inner and "transactionId" not in fields else None
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType] - JSON


def _statement_line(row: Any) -> StatementLine | None:
    if not isinstance(row, dict):
        return None
    fields = cast("dict[str, Any]", row)
    if isinstance(fields, DuplicateField) and not fields.names.isdisjoint(_ROW):
        return None
    receipt = read_receipt(_text(fields.get("transactionId")))
    amount_text = _stated(fields.get("amount"))
    moments = read_moments(_text(fields.get("trxDate")))
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


_ROW = frozenset({"transactionId", "trxDate", "msisdn", "transactiontype", "billreference", "amount"})
"""The fields of a row that decide which payment it is of."""


def read_receipt(text: str | None) -> str | None:
    """A receipt in its one form, capitals and digits of ASCII; None for anything else."""
    upper = unicodedata.normalize("NFKC", text or "").strip().upper()
    return upper if _RECEIPT.match(upper) else None


def read_payer(parties: Iterable[str]) -> str | None:
    """The payer's number from the parties as Daraja names them, ``2547… - JANE DOE``; one of them may be a shop.

    None where they name two numbers: which of them paid is not said.
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
    """The readings of a time in UTC, East Africa Time first: one without a zone, two with a Z, which is not trusted."""
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
"""How M-Pesa writes a time in results and on statements: ``19.12.2019 11:45:50``."""


_HALF_DAY = re.compile(r"([0-9./-]{8,10}[ T])([0-9]{1,2})(:[0-9]{2}(?::[0-9]{2})?) ?([AaPp])\.?[Mm]\.?\Z", re.ASCII)
"""A time with half a day: ``19.12.2019 01:45:50 PM``."""


def _read_date(text: str) -> datetime:
    """A time as M-Pesa has been seen to write it, with the zone that it states. Raises ValueError."""
    if text.isdigit():
        # strptime alone would read fewer digits as another time.
        if len(text) != len("YYYYMMDDHHmmss"):
            raise ValueError("not YYYYMMDDHHmmss")
        return datetime.strptime(text, "%Y%m%d%H%M%S")  # noqa: DTZ007 - the caller adds the zone
    text = text.removesuffix("EAT").rstrip()
    if found := _HALF_DAY.match(text):
        date, hour, rest, half = found.groups()
        if not 1 <= int(hour) <= 12:
            raise ValueError("no hour of a half day")
        text = f"{date}{int(hour) % 12 + (12 if half in 'pP' else 0):02}{rest}"
    if found := _DAY_FIRST.match(text):
        day, month, year, hours = found.groups()
        text = f"{year}-{month:0>2}-{day:0>2} {hours if hours[1] != ':' else '0' + hours}"
    return datetime.fromisoformat(text)


def _inner(content: Any, *names: str) -> dict[str, Any]:
    for name in names:
        if type(content) is DuplicateField:
            _refuse_doubled(content, (name,))
        content = cast("dict[str, Any]", content).get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise InvalidCallback(f"{'.'.join(names)} is missing")
    return cast("dict[str, Any]", content)


def _items(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Named values by their names in lower case, of each name the first that states something."""
    found: dict[str, Any] = {}
    for written, value in pairs:
        name = _name(written)
        if value is None or value == "":
            continue
        if name in _ITEMS and name in found and not is_same(found[name], value):
            raise ContradictoryCallback(f"{written} is stated twice, with different values")
        found.setdefault(name, value)
    return found


_ITEMS = frozenset({"amount", "mpesareceiptnumber", "phonenumber"})
"""The items that decide what was paid, in lower case."""


def _elsewhere(body: bytes) -> dict[str, Any]:
    """The items of a success that stand somewhere else or are called otherwise, by their usual names in lower case.

    What is stated counts as stated wherever it stands: an amount that is overlooked would complete a payment of another
    one. Raises Contradictory where an item has two values.
    """
    found: dict[str, Any] = {}
    plain = body.lower()
    if plain.isascii() and not any(part in plain for part in _SIGNS_OF_ITEMS):
        return found
    try:
        waiting = deque[tuple[str, Any]]((("", read_json_with_duplicates(body)),))
    except ValueError:
        return found
    while waiting:
        name, value = waiting.popleft()
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            with suppress(ValueError):
                value = read_json_with_duplicates(value.encode("utf-8", "surrogatepass"))
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            _refuse_doubled(fields, [one for one in fields if _item_called(one) or _name(one) in _AROUND_ITEMS])
            waiting.extend(_named_fields(fields, name))
        elif isinstance(value, list):
            waiting.extend((name, each) for each in value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
        elif (item := _item_called(name)) is not None and _stated(value) is not None:
            if item in found and not is_same(found[item], value):
                raise ContradictoryCallback(f"{item} is stated twice, with different values")
            found[item] = value
    return found


def _named_fields(fields: dict[str, Any], around: str) -> list[tuple[str, Any]]:
    """The values of an object with their names: one that holds the name of an item names all its other values."""
    names = [
        key for key, text in fields.items() if isinstance(text, str) and key != "ResultDesc" and _item_called(text)
    ]
    if names:
        return [(fields[names[0]], value) for key, value in fields.items() if key not in names]
    return [(key if _item_called(key) else around, value) for key, value in fields.items() if key != "ResultDesc"]


def _item_called(name: str) -> str | None:
    """The item that a name can only mean: ``TransAmount`` and ``amount`` are the amount. None for other names."""
    if len(name) > _LONGEST_NAME:
        return None
    plain = _name(unicodedata.normalize("NFKC", name))
    return next((item for part, item in _PARTS_OF_NAMES.items() if part in plain), None)


_LONGEST_NAME = 40
_PARTS_OF_NAMES = {"amount": "amount", "receipt": "mpesareceiptnumber"}
_SIGNS_OF_ITEMS = (b"amount", b"receipt", b"\\u", b"\x00")
"""Without one of these no name in a body of ASCII can be that of an item."""
_AROUND_ITEMS = frozenset({"name", "key", "value", "item", "items", "callbackmetadata"})


def _pairs(holder: Any, list_name: str, key_name: str) -> list[tuple[str, Any]]:
    """Names and values: in a list, in a list of lists, alone, or without the object around them."""
    found: list[tuple[str, Any]] = []
    waiting = deque[Any]((holder,))
    while waiting:
        current = waiting.popleft()
        if isinstance(current, list):
            waiting.extendleft(reversed(current))  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif isinstance(current, dict):
            entry = cast("dict[str, Any]", current)
            if type(entry) is DuplicateField:
                _refuse_doubled(entry, (key_name, "Value", list_name))
            name = entry.get(key_name)
            if isinstance(name, str):
                found.append((name.strip(), entry.get("Value")))
            elif list_name in entry:
                waiting.appendleft(entry[list_name])
    return found


def _name(written: str) -> str:
    """A name as it is compared: regardless of case and of spaces, which older releases of M-Pesa wrote."""
    return "".join(written.split()).casefold()


def _text(value: Any) -> str | None:
    """A value as text, trimmed; None for what is absent, empty, or no plain value."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int) and value.bit_length() > _MOST_DIGITS * 3:
        return None
    text = str(value)
    if not text.isprintable():
        text = _SURROGATE.sub("\ufffd", text).replace("\x00", "")
    return text.strip()[:500] or None


def _stated(value: Any) -> str | None:
    """What stands where an amount is usual, as text; None only for nothing: what cannot be read was stated as well.

    Anything but a numeral is masked and cut as M-Pesa's words are: merchants are shown it.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    text = _text(f"{value}" if isinstance(value, bool | list | dict) else value) or "a number of too many digits"
    if _read_money(text) is not None:
        return text
    shown = provider_text(text, _SHOWN) or "unreadable"
    # Without the characters that cannot be shown it must not become a number.
    return f"{shown} and hidden characters" if _read_money(shown) is not None else shown


_SHOWN = 64


def read_amount(text: str | None) -> Kes | None:
    """An amount in KES, compared as a number: ``500``, ``"500.00"``, ``5e2``, ``"1,500.00"``.

    None for cents, words, below zero, a currency beside the number, and what could be read in two ways: spaces inside,
    or a comma that need not set thousands apart.
    """
    number = None if text is None else _read_money(text.strip())
    if number is None or number != number.to_integral_value() or not 0 <= number < _MOST_KES:
        return None
    return Kes(int(number))


def _read_money(text: str) -> Decimal | None:
    return read_number(text.replace(",", "") if _GROUPED.match(text) else text)


_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+\.[0-9]{1,2}|(?:,[0-9]{3}){2,})\Z", re.ASCII)
"""Commas that can only set thousands apart: ``1,000.00``. In ``1,000`` the comma could be the decimal one."""

_MOST_KES = 10**12
"""Beyond it no number is an amount of money that anybody paid."""


def _digits(text: str | None) -> str | None:
    """A number that is read digit by digit, such as a phone or a time, also where it stands as ``254711000001.0``."""
    return text if text is None or text.isdigit() else canonical(text)


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else from_daraja_timestamp(_digits(text) or "")
    except (ValueError, OverflowError):
        return None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Daraja's error answer."""

    code: str | None
    message: str | None


def read_fault_body(content: Any) -> Fault:
    """The code and message of an error answer, Daraja's or the API proxy's in front; None where it has none."""
    if not isinstance(content, dict):
        return Fault(code=None, message=None)
    fields = _lowered(cast("dict[str, Any]", content))
    code, message = _text(fields.get("errorcode")), _text(fields.get("errormessage"))
    if code is None and message is None:
        fault = _proxy_fault(fields)
        if isinstance(fault, dict):
            fault = _lowered(cast("dict[str, Any]", fault))
            code, message = _proxy_code(fault), _text(fault.get("faultstring"))
        else:
            message = _text(fault)
    return Fault(code=code, message=message)


def _lowered(fields: dict[str, Any]) -> dict[str, Any]:
    """An object whose names are in lower case."""
    return {name.lower(): value for name, value in fields.items()}


def _proxy_fault(fields: dict[str, Any]) -> Any:
    """The proxy's fault, in JSON or as a SOAP envelope turned into JSON."""
    if "fault" in fields:
        return fields["fault"]
    for name in ("envelope", "body", "fault"):
        inner = fields.get(name)
        if not isinstance(inner, dict):
            return None
        fields = _lowered(cast("dict[str, Any]", inner))
    return fields


def _proxy_code(fault: dict[str, Any]) -> str | None:
    detail = fault.get("detail")
    if not isinstance(detail, dict):
        return None
    detail = _lowered(cast("dict[str, Any]", detail))
    if isinstance(source := detail.get("source"), dict):
        detail = _lowered(cast("dict[str, Any]", source))
    return read_text(detail, "errorcode")


def read_code(content: Any, name: str) -> str | None:
    """A code of an answer or callback in its one form (see ``canonical``). None when it is absent, or is no number."""
    text = read_text(content, name)
    if text is None or text in _NO_NUMBER or len(text) > _LONGEST_CODE:
        return None
    return canonical(text) if _CODE.match(text) else provider_text(text, _LONGEST_CODE) or None


_LONGEST_CODE = 64
_CODE = re.compile(r"(?![0-9]{10})[A-Za-z0-9_.+-]+\Z", re.ASCII)
"""A code as Daraja has been seen to write it; anything else in its place is masked as text is."""
_NO_NUMBER = frozenset({"NaN", "Infinity", "-Infinity"})


def read_message(content: Any, name: str, limit: int = LIMIT) -> str | None:
    """Words of M-Pesa's, fit to be shown and stored. None when there are none."""
    text = read_text(content, name)
    return None if text is None else provider_text(text, limit) or None


def read_text(content: Any, name: str) -> str | None:
    """A field of an answer as text, None when it is absent or no plain value."""
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
_SEEN = frozenset({"found", "fetched", "returned", "retrieved", "shortcode"})
_OTHER_THAN_MONEY = frozenset(
    {"access", "all", "answer", "by", "connection", "every", "from", "permission", "reply", "response", "to", "valid"}
)
"""Words between a negation and the noun that make the negation about something else."""

_TROUBLE = frozenset(
    {"busy", "denied", "error", "errors", "exception", "fail", "failed", "failure", "internal", "invalid"}
    | {"maintenance", "timeout", "timed", "unable", "unauthorised", "unauthorized", "unavailable"}
)
_PREFIX = frozenset({"error", "failed", "failure", "occurred", "bad", "request", "internal", "server"})
"""How Daraja begins the text of any fault."""
_VERBS = ("access", "allow", "authori", "complet", "connect", "enabl", "fetch", "get", "load", "permit", "process")
_MORE_VERBS = ("pull", "query", "quer", "read", "register", "retriev")
_NEAR, _MOST_SAID = 7, 1000


def says_no_transactions(text: str) -> bool:
    """Whether a text says, in any words, that there are no transactions, and nothing of an error.

    The absence of an answer is no answer: a text that could mean trouble is not taken for it.
    """
    text = _CAMEL.sub(" ", text[:_MOST_SAID])
    words = _WORDS.findall(text.lower().replace("\u2019", "'"))
    while words and words[0] in _PREFIX:
        words = words[1:]
    if not _TROUBLE.isdisjoint(words) or any(_is_unable(words, at) for at in range(len(words))):
        return False
    return any(_denies(words, at) for at in range(len(words)))


def _is_not(word: str) -> bool:
    return word in _NOT or word.endswith("n't")


def _is_unable(words: list[str], at: int) -> bool:
    """Whether it says here that something could not be done, such as ``could not fetch``."""
    if not _is_not(words[at]):
        return False
    rest = [word for word in words[at + 1 : at + 4] if word not in {"be", "been"}]
    return bool(rest) and rest[0].startswith(_VERBS + _MORE_VERBS) and "any" not in rest[1:2]


def _denies(words: list[str], at: int) -> bool:
    """Whether the word here says that there are none of what is named nearby."""
    if words[at] in _NOUNS:
        after = words[at + 1 : at + _NEAR]
        found = any(_is_not(word) and _EXIST & set(after[place + 1 : place + 3]) for place, word in enumerate(after))
        return found or bool({"none", "nil", "zero", "0", "empty"} & set(after))
    if words[at] not in _NONE and not _is_not(words[at]):
        return False
    ahead = words[at + 1 : at + 1 + _NEAR]
    noun = next((place for place, word in enumerate(ahead) if word in _NOUNS), None)
    if noun is not None:
        # “No result from the server” is about an answer.
        return _OTHER_THAN_MONEY.isdisjoint(ahead if ahead[noun].startswith("result") else ahead[:noun])
    if words[at] == "never":
        return "transacted" in ahead[:2]
    return words[at] in {"nothing", "none", "empty"} and bool(_SEEN & set(ahead))
