"""JSON objects that name a field twice: parsers disagree on which value counts, so such an object is refused."""

import json
from collections.abc import Sequence
from typing import Any

_LONGEST_NAME, _LONGEST_PATH = 64, 200
"""Characters of a name and of a path that are shown: names come from outside and can have any length."""


class _Twice(Exception):
    """An object names a field twice."""


class _Pairs(tuple[tuple[str, Any], ...]):
    """An object as its fields, in order and with repetitions."""

    __slots__ = ()


def _refuse_twice(pairs: Sequence[tuple[str, Any]]) -> None:
    # A dict's construction is the cheapest way to count distinct names.
    if len(dict(pairs)) != len(pairs):
        raise _Twice


# Numbers are not converted: Python refuses integers of more than 4,300 digits, and no value matters here.
# Not strict: a control character in a text must not hide a repetition from a parser that takes it.
_SCAN = json.JSONDecoder(
    object_pairs_hook=_refuse_twice, parse_int=len, parse_float=len, parse_constant=len, strict=False
)
_READ = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=len, parse_float=len, parse_constant=len, strict=False)


def find_repeated_key(body: bytes | str) -> str | None:
    """The path of a field that one object names twice, such as ``metadata.order`` or ``items[2].name``.

    None where there is none, and for text that Python's parser does not read: the caller's own parser judges that.
    Names that differ only in their escapes are equal. Costs about 1 µs for each 100 bytes.
    """
    text = ""
    try:
        text = body if isinstance(body, str) else body.decode("utf-8-sig")
        _SCAN.decode(text)
    except _Twice:
        # The path is built only where there is a repetition.
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
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Pairs):
            inner: list[tuple[str, Any]] = []
            seen = set[str]()
            for name, part in value:
                here = (f"{path}.{name[:_LONGEST_NAME]}" if path else name[:_LONGEST_NAME])[:_LONGEST_PATH]
                if name in seen:
                    return here
                seen.add(name)
                inner.append((here, part))
            waiting += reversed(inner)
        elif isinstance(value, list):
            parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
            waiting += [(f"{path}[{number}]", part) for number, part in reversed(list(enumerate(parts)))]
    return None
