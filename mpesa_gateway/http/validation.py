"""Reads what callers send: one clear problem for every bad field, all of them at once."""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec

from mpesa_gateway.errors import FieldChecks, InvalidFields
from mpesa_gateway.http.json_keys import find_repeated_key

S = TypeVar("S", bound=msgspec.Struct)

_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NUL = "must not contain NUL"
_MOST_UNKNOWN = 20
"""Unknown names that one answer lists: each comes with all known ones, and one body can hold thousands."""

_SEND_JSON = "send a JSON object (RFC 8259, UTF-8)"

_MOST_DIGITS = 15
"""Of a whole number that is written with a fraction or an exponent: what a float can hold to the last digit."""

_EXACT = msgspec.json.Decoder(float_hook=Decimal)
_AS_NUMBERS = msgspec.json.Encoder(decimal_format="number")

_WORDS = {
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "float": "a number",
    "object": "an object",
    "datetime": "a time with its zone, such as 2026-11-23T10:15:00Z",
}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))?", re.ASCII)
_EXPECTED = re.compile(r"Expected `([^`]+)`(?:, got `([^`]+)`)?")


def read_body(body: bytes, kind: type[S]) -> S:
    """Decode a JSON body into a struct. Raises Invalid with one problem for each bad, missing or unknown field.

    A field that is given twice is refused, at any depth: the last value would count here, and the first elsewhere.
    A byte order mark in front of the body is skipped, as RFC 8259 allows.
    """
    body = body.removeprefix(BOM_UTF8)
    if (repeated := find_repeated_key(body)) is not None:
        raise InvalidFields.field_error(repeated or "body", "is given twice in one object: send it once")
    checks = FieldChecks()
    try:
        decoded: S = _decode(body, kind)
    except msgspec.ValidationError as problem:
        try:
            _examine(body, kind, "", checks)
        except _NO_JSON:
            # The first look met a wrong field before it met what is no JSON.
            raise InvalidFields.field_error("body", _SEND_JSON) from None
        checks.settle()
        # Every field is right by itself: what is wrong is between them, or a field stands there twice.
        raise InvalidFields.field_error("body", _explain(str(problem))) from None
    except _NO_JSON:
        raise InvalidFields.field_error("body", _SEND_JSON) from None
    _apply_rules(kind, msgspec.structs.asdict(decoded), "", checks)
    checks.settle()
    return decoded


def _decode(body: bytes | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON as this type. To JSON there is one kind of number: ``4.0`` is as whole as ``4``."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as problem:
        if "got `float`" not in str(problem):
            raise
        return msgspec.json.decode(_AS_NUMBERS.encode(_whole(_EXACT.decode(body))), type=kind)


def _whole(value: Any) -> Any:
    """The same with every number as an integer that is one, digit for digit."""
    if isinstance(value, Decimal):
        return int(value) if value.adjusted() < _MOST_DIGITS and value == value.to_integral_value() else value
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value)
        return {name: _whole(part) for name, part in pairs.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]  # pyright: ignore[reportUnknownVariableType] - JSON
    return value


def _apply_rules(kind: type[msgspec.Struct], values: Mapping[str, Any], path: str, checks: FieldChecks) -> None:
    """Check well-typed values: what Postgres could not store, then the struct's own ``RULES``.

    A rule is a field's name and what raises ValueError.
    """
    rules: Mapping[str, Callable[[Any], Any]] = getattr(kind, "RULES", {})
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, msgspec.Struct):
            _apply_rules(type(value), msgspec.structs.asdict(value), f"{path}{name}.", checks)
        elif (problem := _unstorable(value)) is not None:
            checks.fail(f"{path}{name}", problem)
        elif name in rules:
            checks.take(f"{path}{name}", rules[name], value)


def _unstorable(value: Any) -> str | None:
    """Why Postgres could not keep a value: text with NUL, or a time beyond its calendar once it is in UTC."""
    if isinstance(value, str):
        return _NUL if "\x00" in value else None
    if isinstance(value, datetime):
        try:
            value.astimezone(UTC)
        except (ValueError, OverflowError):
            return "must be a time between the years 1 and 9999, in UTC"
        return None
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return _unstorable([*pairs, *pairs.values()])
    if isinstance(value, list | tuple):
        parts = cast("Sequence[Any]", value)
        return next((problem for part in parts if (problem := _unstorable(part))), None)
    return None


def read_query(values: Mapping[str, Sequence[str]], kind: type[S]) -> S:
    """Decode a query string into a struct. Raises Invalid with one problem for each bad or unknown parameter."""
    checks = FieldChecks()
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found: dict[str, Any] = {}
    unknown = [name for name in values if name not in fields]
    for name in unknown[:_MOST_UNKNOWN]:
        known = f"known: {', '.join(sorted(fields))}" if fields else "none is taken here"
        checks.fail(name[:64], f"unknown parameter: remove it ({known})")
    for name, field in fields.items():
        texts = values.get(name, ("",))
        if len(texts) != 1:
            checks.fail(name, "send this parameter once")
        elif texts[0] != "":
            try:
                found[name] = msgspec.convert(_aware(texts[0], field.type), _present(field.type), strict=False)
            except msgspec.ValidationError as problem:
                checks.fail(name, _explain(str(problem)))
            except (ValueError, OverflowError):
                checks.fail(name, "must be a time such as 2026-11-23T10:15:00Z or a date such as 2026-11-23")
    _apply_rules(kind, found, "", checks)
    checks.settle()
    return kind(**found)


def _present(kind: Any) -> Any:
    """A parameter's type once it is there: the word ``null`` is a text like any other, and no way to leave it out."""
    if get_origin(kind) not in {Union, UnionType}:
        return kind
    present: Any = None
    for part in get_args(kind):
        if part is not NoneType:
            present = part if present is None else present | part
    return present


def _aware(text: str, kind: Any) -> str:
    """A time with its zone, in UTC; a bare date is its beginning there. Raises ValueError for any other spelling."""
    if not is_moment(kind):
        return text
    # A plus sign that was not percent-encoded arrives as a space.
    text = text.upper().replace(" ", "+")
    if _MOMENT.fullmatch(text) is None:
        raise ValueError("neither a time of RFC 3339 nor a date")
    moment = datetime.fromisoformat(text)
    return (moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def is_moment(kind: Any) -> bool:
    """Whether a field's type is a time, perhaps None too, whatever else is said of it."""
    if get_origin(kind) in {Annotated, Union, UnionType}:
        return any(is_moment(part) for part in get_args(kind))
    return kind is datetime


def _examine(body: bytes | msgspec.Raw, kind: type[msgspec.Struct], path: str, checks: FieldChecks) -> None:
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        checks.fail(path or "body", "send a JSON object")
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    unknown = [name for name in given if name not in fields]
    for name in unknown[:_MOST_UNKNOWN]:
        checks.fail(f"{path}{name[:64]}", f"unknown field: remove it (known: {', '.join(sorted(fields))})")
    taken: dict[str, Any] = {}
    for name, field in fields.items():
        raw = given.get(name)
        if raw is None:
            if field.required:
                checks.fail(f"{path}{name}", "is required")
            continue
        try:
            taken[name] = _decode(raw, field.type)
        except msgspec.ValidationError as problem:
            inner = _struct_in(field.type)
            if inner is not None and bytes(raw)[:1] == b"{":
                _examine(raw, inner, f"{path}{name}.", checks)
            else:
                checks.fail(f"{path}{name}", _explain(str(problem)))
        except msgspec.DecodeError:
            checks.fail(f"{path}{name}", "is not valid JSON")
    _apply_rules(kind, taken, path, checks)


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part
    return None


def _explain(text: str) -> str:
    text = text.partition(" - at ")[0]
    found = _EXPECTED.search(text)
    if found is None or "length" in text or ">=" in text or "<=" in text or "matching" in text:
        return text[:1].lower() + text[1:]
    wanted = [_WORDS.get(word.strip(), word.strip()) for word in found[1].split("|") if word.strip() != "null"]
    return f"must be {' or '.join(wanted)}" + (f", not {found[2]}" if found[2] else "")
