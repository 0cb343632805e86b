"""Decoding of bodies and queries; all invalid fields are reported at once."""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec

from mpesa_gateway.errors import FieldChecks, InvalidFields, PartError
from mpesa_gateway.http.allowed_values import refuse_json, refuse_text
from mpesa_gateway.http.json_keys import find_repeated_key
from mpesa_gateway.http.json_syntax import SEND_JSON, explain_syntax
from mpesa_gateway.logs import masked_name

S = TypeVar("S", bound=msgspec.Struct)

_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MOST_UNKNOWN = 20
"""Unknown names per response."""

_LONGEST_NAME = 64
"""Displayed characters of a name."""

_MOST_DIGITS = 15
"""Digits that a float represents exactly."""

_EXACT = msgspec.json.Decoder(float_hook=Decimal)
_AS_NUMBERS = msgspec.json.Encoder(decimal_format="number")

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))?", re.ASCII)


def read_body(body: bytes, kind: type[S]) -> S:
    """Decode a JSON body. Raises InvalidFields.

    A repeated field is rejected at any depth, because parsers disagree on the value. A byte order mark is skipped (RFC
    8259).
    """
    body = body.removeprefix(BOM_UTF8)
    if (repeated := find_repeated_key(body)) is not None:
        raise InvalidFields.field_error(repeated or "body", "is repeated in one object: send it once")
    checks = FieldChecks()
    try:
        decoded: S = _decode(body, kind)
    except msgspec.ValidationError:
        try:
            _check_fields(body, kind, "", checks)
        except _DECODE_ERRORS:
            # The body has an invalid field before the syntax error.
            raise InvalidFields.field_error("body", explain_syntax(body)) from None
        checks.settle()
        # No field is to blame.
        raise InvalidFields.field_error("body", SEND_JSON) from None
    except _DECODE_ERRORS:
        raise InvalidFields.field_error("body", explain_syntax(body)) from None
    _apply_rules(kind, msgspec.structs.asdict(decoded), "", checks)
    checks.settle()
    return decoded


def _decode(body: bytes | msgspec.Raw, kind: Any) -> Any:
    """JSON has one number type: ``4.0`` is a valid integer."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as problem:
        if "got `float`" not in str(problem):
            raise
        return msgspec.json.decode(_AS_NUMBERS.encode(_with_integers(_EXACT.decode(body))), type=kind)


def _with_integers(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value.adjusted() < _MOST_DIGITS and value == value.to_integral_value() else value
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value)
        return {name: _with_integers(part) for name, part in pairs.items()}
    if isinstance(value, list):
        return [_with_integers(part) for part in value]  # pyright: ignore[reportUnknownVariableType] - JSON
    return value


def _apply_rules(kind: type[msgspec.Struct], values: Mapping[str, Any], path: str, checks: FieldChecks) -> None:
    """Check that Postgres can store the values, then the struct's ``RULES``."""
    rules: Mapping[str, Callable[[Any], Any]] = getattr(kind, "RULES", {})
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, msgspec.Struct):
            _apply_rules(type(value), msgspec.structs.asdict(value), f"{path}{name}.", checks)
        elif (problem := _unstorable(value)) is not None:
            checks.fail(f"{path}{name}{problem.part}", str(problem))
        elif name in rules:
            checks.take(f"{path}{name}", rules[name], value)


def _unstorable(value: Any) -> PartError | None:
    if isinstance(value, str):
        return PartError("must not contain NUL") if "\x00" in value else None
    if isinstance(value, datetime):
        return None if _is_in_utc(value) else PartError("must be a time between the years 1 and 9999, in UTC")
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        if (problem := _unstorable([*pairs])) is not None:
            return PartError(str(problem))
        return _first((f".{_shown_name(name)}", part) for name, part in pairs.items())
    if isinstance(value, list | tuple):
        parts = cast("Sequence[Any]", value)
        return _first((f"[{number}]", part) for number, part in enumerate(parts))
    return None


def _shown_name(name: str) -> str:
    # A name that is cut first may keep the start of a key.
    return masked_name(name)[:_LONGEST_NAME]


def _is_in_utc(moment: datetime) -> bool:
    try:
        moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


def _first(parts: Iterable[tuple[str, Any]]) -> PartError | None:
    for where, part in parts:
        if (problem := _unstorable(part)) is not None:
            return PartError(str(problem), part=where + problem.part)
    return None


def read_query(values: Mapping[str, Sequence[str]], kind: type[S]) -> S:
    """Raises InvalidFields."""
    checks = FieldChecks()
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found: dict[str, Any] = {}
    unknown = [name for name in values if name not in fields]
    for name in unknown[:_MOST_UNKNOWN]:
        known = f"known: {', '.join(sorted(fields))}" if fields else "there are none"
        checks.fail(_shown_name(name), f"unknown parameter: remove it ({known})")
    for name, field in fields.items():
        texts = values.get(name, ("",))
        if len(texts) != 1:
            checks.fail(name, "send this parameter once")
        elif texts[0] != "":
            try:
                found[name] = msgspec.convert(_to_utc(texts[0], field.type), _without_none(field.type), strict=False)
            except msgspec.ValidationError:
                checks.fail(name, refuse_text(field.type, texts[0]))
            except (ValueError, OverflowError):
                checks.fail(name, "must be a time such as 2026-11-23T10:15:00Z or a date such as 2026-11-23")
    _apply_rules(kind, found, "", checks)
    checks.settle()
    return kind(**found)


def _without_none(kind: Any) -> Any:
    """``null`` is text in a query."""
    if get_origin(kind) not in {Union, UnionType}:
        return kind
    present: Any = None
    for part in get_args(kind):
        if part is not NoneType:
            present = part if present is None else present | part
    return present


def _to_utc(text: str, kind: Any) -> str:
    """Return a time in UTC; a date means its start. Raises ValueError."""
    if not is_moment(kind):
        return text
    # An unencoded plus sign arrives as a space.
    text = text.upper().replace(" ", "+")
    if _MOMENT.fullmatch(text) is None:
        raise ValueError("neither a time of RFC 3339 nor a date")
    moment = datetime.fromisoformat(text)
    return (moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def is_moment(kind: Any) -> bool:
    """Return True for datetime, also optional or annotated."""
    if get_origin(kind) in {Annotated, Union, UnionType}:
        return any(is_moment(part) for part in get_args(kind))
    return kind is datetime


def _check_fields(body: bytes | msgspec.Raw, kind: type[msgspec.Struct], path: str, checks: FieldChecks) -> None:
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        checks.fail(path or "body", "send a JSON object")
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    unknown = [name for name in given if name not in fields]
    for name in unknown[:_MOST_UNKNOWN]:
        checks.fail(f"{path}{_shown_name(name)}", f"unknown field: remove it (known: {', '.join(sorted(fields))})")
    taken: dict[str, Any] = {}
    for name, field in fields.items():
        raw = given.get(name)
        if raw is None:
            if field.required:
                checks.fail(f"{path}{name}", "is required")
            continue
        try:
            taken[name] = _decode(raw, field.type)
        except msgspec.ValidationError:
            _check_value(raw, field.type, f"{path}{name}", checks)
    _apply_rules(kind, taken, path, checks)


def _check_value(raw: msgspec.Raw, kind: Any, path: str, checks: FieldChecks) -> None:
    start = bytes(raw)[:1]
    if start == b"{" and (inner := _struct_in(kind)) is not None:
        _check_fields(raw, inner, f"{path}.", checks)
        return
    parts: Iterable[tuple[str, msgspec.Raw]] = ()
    item = _item_of(kind, dict if start == b"{" else list if start == b"[" else None)
    if item is not None and start == b"{":
        pairs = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        parts = ((f"{path}.{_shown_name(name)}", part) for name, part in pairs.items())
    elif item is not None:
        elements = msgspec.json.decode(raw, type=list[msgspec.Raw])
        parts = ((f"{path}[{number}]", part) for number, part in enumerate(elements))
    # Each invalid part costs an exception.
    invalid = list(islice(((where, part) for where, part in parts if not _is_valid(part, item)), _MOST_UNKNOWN))
    for where, part in invalid:
        _check_value(part, item, where, checks)
    if not invalid:
        checks.fail(path, refuse_json(kind, raw))


def _is_valid(raw: msgspec.Raw, kind: Any) -> bool:
    try:
        _decode(raw, kind)
    except msgspec.ValidationError:
        return False
    return True


def _item_of(kind: Any, container: type | None) -> Any:
    for part in (kind, *get_args(kind)):
        origin, inner = get_origin(part), get_args(part)
        if container is dict and origin is dict:
            return inner[1]
        if container is list and origin in {list, tuple, set, frozenset}:
            return inner[0]
    return None


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part
    return None
