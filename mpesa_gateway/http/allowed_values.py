"""Descriptions of allowed and sent values. Texts of libraries reach no response."""

from enum import Enum
from typing import Any

import msgspec
from msgspec import inspect

from mpesa_gateway.logs import masked

_LONGEST = 40
"""Displayed characters of a sent value."""

_ABSENT = (inspect.NoneType, inspect.CustomType)
"""``UNSET`` is a custom type."""

_PLAIN: dict[type, str] = {
    inspect.BoolType: "true or false",
    inspect.FloatType: "a number",
    inspect.DecimalType: "a number",
    inspect.DateTimeType: "a time with its zone, such as 2026-11-23T10:15:00Z",
    inspect.DateType: "a date such as 2026-11-23",
    inspect.DictType: "an object",
    inspect.StructType: "an object",
    inspect.ListType: "a list",
    inspect.VarTupleType: "a list",
    inspect.SetType: "a list",
    inspect.FrozenSetType: "a list",
}

_SORTS = {b'"': "text", b"{": "an object", b"[": "a list", b"t": "true", b"f": "false", b"n": "null"}


def describe_allowed(kind: Any) -> str:
    """Return the allowed values of a type, such as ``a whole number from 1 to 100``."""
    return _describe(inspect.type_info(kind))


def _describe(info: Any) -> str:
    match info:
        case inspect.Metadata():
            text = _describe(info.type)
        case inspect.UnionType():
            parts = [_describe(part) for part in info.types if not isinstance(part, _ABSENT)]
            text = " or ".join(dict.fromkeys(parts))
        case inspect.EnumType():
            text = _one_of([member.value for member in info.cls])
        case inspect.LiteralType():
            text = _one_of(list(info.values))
        case inspect.IntType():
            text = f"a whole number{_bounds(info.ge, info.le)}"
        case inspect.StrType():
            text = f"text{_lengths(info.min_length, info.max_length)}"
        case _:
            kind: type[Any] = info.__class__
            text = _PLAIN.get(kind, "a valid value: see /schema")
    return text


def _one_of(values: list[Any]) -> str:
    texts = [str(value.value if isinstance(value, Enum) else value) for value in values]
    return texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"


def _bounds(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""


def _lengths(least: int | None, most: int | None) -> str:
    if most is None:
        return f" of at least {least} characters" if least else ""
    return f" of {least} to {most} characters" if least else f" of at most {most} characters"


def shows_value(kind: Any) -> bool:
    """Return True for enumerations, numbers and booleans. Text may be a secret."""
    return _shows(inspect.type_info(kind))


def _shows(info: Any) -> bool:
    if isinstance(info, inspect.Metadata):
        return _shows(info.type)
    if isinstance(info, inspect.UnionType):
        return all(isinstance(part, _ABSENT) or _shows(part) for part in info.types)
    return isinstance(
        info, inspect.EnumType | inspect.LiteralType | inspect.IntType | inspect.BoolType | inspect.DecimalType
    )


def refuse_text(kind: Any, text: str) -> str:
    """Return the message for a parameter's value."""
    return f"must be {describe_allowed(kind)}" + (f', not "{shown(text)}"' if shows_value(kind) else "")


def refuse_json(kind: Any, raw: msgspec.Raw) -> str:
    """Return the message for a JSON value of the wrong type or outside the bounds."""
    data = bytes(raw).strip()
    sort = _SORTS.get(data[:1], "a number")
    wanted = describe_allowed(kind)
    if shows_value(kind) and sort in {"text", "a number"}:
        is_number = "number" in wanted
        if is_number == (sort == "a number"):
            text = shown(data.decode("utf-8", "replace").strip('"'))
            sort = text if is_number else f'"{text}"'
    if sort == wanted or wanted.startswith(f"{sort} of "):
        return f"must be {wanted}"
    return f"must be {wanted}, not {sort}"


def shown(text: str) -> str:
    """Return a sent value for a message: short, without secrets and phone numbers."""
    plain = masked(text[:200])
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}…"
