"""Detection of repeated JSON keys; parsers disagree on the value."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

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


_Place: TypeAlias = "tuple[_Place, str | int] | None"
"""The place of the value that contains this one, and the name or number in it."""


def _path(root: Any) -> str | None:
    """Only the path of the repeated key is built: a body has as many paths as values."""
    pending: list[Iterator[tuple[_Place, Any]]] = [iter([(None, root)])]
    while pending:
        for place, value in pending[-1]:
            if isinstance(value, _Pairs):
                seen = set[str]()
                for name, _ in value:
                    if name in seen:
                        return _spelled((place, name))
                    seen.add(name)
                pending.append(_inside(place, value))
                break
            if isinstance(value, list):
                parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
                pending.append(_inside(place, enumerate(parts)))
                break
        else:
            pending.pop()
    return None


def _inside(place: _Place, parts: Iterable[tuple[str | int, Any]]) -> Iterator[tuple[_Place, Any]]:
    return (((place, key), part) for key, part in parts)


def _spelled(place: _Place) -> str:
    keys: list[str | int] = []
    while place is not None:
        place, key = place
        keys.append(key)
    path = ""
    for key in reversed(keys):
        if len(path) >= _LONGEST_PATH:
            break
        path += f"[{key}]" if isinstance(key, int) else f"{'.' if path else ''}{key[:_LONGEST_NAME]}"
    return path[:_LONGEST_PATH]
