"""Descriptions of allowed values. Texts of libraries reach no response.

A sent value may be a secret or a phone number. Only small whole numbers are repeated, and words such as ``complete`` in
the query, where an enumeration is expected.
"""

import re
from enum import Enum
from typing import Any

import msgspec
from msgspec import inspect

_INTEGER = re.compile(r"-?[0-9]{1,7}", re.ASCII)
_MOST = 10**6
_WORD = re.compile(r"[a-z_]{1,20}", re.ASCII)

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


def refuse_text(kind: Any, text: str) -> str:
    """Return the message for a parameter's value."""
    info = _inner(inspect.type_info(kind))
    if isinstance(info, inspect.EnumType | inspect.LiteralType):
        return f"must be {describe_allowed(kind)}{not_the_word(text)}"
    return f"must be {describe_allowed(kind)}" + (f', not "{text}"' if _is_small(info, text) else "")


def not_the_word(text: str) -> str:
    """Return ``, not "complete"`` for a parameter's word, an empty text for anything else."""
    return f', not "{text}"' if _WORD.fullmatch(text) else ""


def refuse_json(kind: Any, raw: msgspec.Raw) -> str:
    """Return the message for a JSON value of the wrong type or outside the bounds."""
    data = bytes(raw).strip()
    sort = _SORTS.get(data[:1], "a number")
    wanted = describe_allowed(kind)
    if sort == "a number" and "number" in wanted:
        text = data[:20].decode("ascii", "replace")
        sort = text if _is_small(_inner(inspect.type_info(kind)), text) else wanted
    if sort == wanted or wanted.startswith(f"{sort} of ") or (sort == "text" and wanted.startswith("one of ")):
        return f"must be {wanted}"
    return f"must be {wanted}, not {sort}"


def _inner(info: Any) -> Any:
    if isinstance(info, inspect.Metadata):
        return _inner(info.type)
    if isinstance(info, inspect.UnionType):
        parts = [part for part in info.types if not isinstance(part, _ABSENT)]
        return _inner(parts[0]) if len(parts) == 1 else info
    return info


def _is_small(info: Any, text: str) -> bool:
    return isinstance(info, inspect.IntType) and _INTEGER.fullmatch(text) is not None and abs(int(text)) <= _MOST
