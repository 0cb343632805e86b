"""Detection of repeated JSON keys; parsers disagree on the value."""

import json
from collections.abc import Sequence
from typing import Any

_LONGEST_NAME, _LONGEST_PATH = 64, 200
"""Displayed characters: names are untrusted."""


class _RepeatedKey(Exception):
    pass


class _Pairs(tuple[tuple[str, Any], ...]):
    __slots__ = ()


def _reject_repeated(pairs: Sequence[tuple[str, Any]]) -> None:
    # The cheapest count of distinct names.
    if len(dict(pairs)) != len(pairs):
        raise _RepeatedKey


# Not converted: Python rejects over 4,300 digits. Not strict: a control character must not hide a repetition from a
# lenient parser.
_SCAN = json.JSONDecoder(
    object_pairs_hook=_reject_repeated, parse_int=len, parse_float=len, parse_constant=len, strict=False
)
_READ = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=len, parse_float=len, parse_constant=len, strict=False)


def find_repeated_key(body: bytes | str) -> str | None:
    """Return the path of a repeated key such as ``items[2].name``, or None.

    Returns None for invalid JSON. Escaped and plain names are equal. Costs about 1 µs per 100 bytes.
    """
    text = ""
    try:
        text = body if isinstance(body, str) else body.decode("utf-8-sig")
        _SCAN.decode(text)
    except _RepeatedKey:
        return _find_path(text)
    except (ValueError, RecursionError):
        return None
    return None


def _find_path(text: str) -> str | None:
    try:
        return _path(_READ.decode(text))
    except (ValueError, RecursionError):
        return None


def _path(root: Any) -> str | None:
    pending: list[tuple[str, Any]] = [("", root)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, _Pairs):
            inner: list[tuple[str, Any]] = []
            seen = set[str]()
            for name, part in value:
                field_path = (f"{path}.{name[:_LONGEST_NAME]}" if path else name[:_LONGEST_NAME])[:_LONGEST_PATH]
                if name in seen:
                    return field_path
                seen.add(name)
                inner.append((field_path, part))
            pending += reversed(inner)
        elif isinstance(value, list):
            parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
            pending += [(f"{path}[{number}]", part) for number, part in reversed(list(enumerate(parts)))]
    return None
