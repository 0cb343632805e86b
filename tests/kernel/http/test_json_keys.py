"""Protects the search for repeated fields: they are found at every depth, and nothing else is."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.http.json_keys import find_repeated_key


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"a": 1, "a": 1}', "a"),
        (b'{"a": 1, "\\u0061": 1}', "a"),
        (b'{"a": {"b": 1}, "c": {"b": 1, "b": 2}}', "c.b"),
        (b'[{"a": 1}, {"a": [{}, {"b": 1, "b": 2}]}]', "[1].a[1].b"),
        (b'{"a": {"c": 1, "c": 1}, "a": 2}', "a"),
        (b'{"": 1, "": 2}', ""),
        (b'\xef\xbb\xbf{"a": 1, "a": 1}', "a"),
        (b'{"a": NaN, "a": -Infinity}', "a"),
        (b'{"' + b"x" * 500 + b'": 1, "' + b"x" * 500 + b'": 2}', "x" * 64),
        (b'{"a": 1}', None),
        (b'{"a": 1, "A": 1, "a ": 1}', None),
        (b'[{"a": 1}, {"a": 1}, {"b": {"a": 1}, "a": 2}]', None),
        (b'{"a": "{\\"b\\": 1, \\"b\\": 2}"}', None),
        (b"", None),
        (b"null", None),
        (b'{"a": 1, "a": 1', None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_find_repeated_key_returns_the_path_of_the_first(body: bytes, path: str | None) -> None:
    assert find_repeated_key(body) == path


@dataclass(frozen=True)
class Pairs:
    """An object that may have a name twice."""

    fields: list[tuple[str, Any]]


@dataclass(frozen=True)
class Items:
    """An array."""

    parts: list[Any]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4).map(Items)
        | st.lists(st.tuples(st.sampled_from("abcd"), inner), max_size=4).map(Pairs)
    ),
    max_leaves=12,
)


def encoded(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{encoded(name)}:{encoded(part)}" for name, part in value.fields) + "}"
    if isinstance(value, Items):
        return "[" + ",".join(map(encoded, value.parts)) + "]"
    return msgspec.json.encode(value).decode()


def repeats(value: Any) -> bool:
    if isinstance(value, Pairs):
        names = [name for name, _ in value.fields]
        return len(set(names)) != len(names) or any(repeats(part) for _, part in value.fields)
    return isinstance(value, Items) and any(map(repeats, value.parts))


@given(JSON)
def test_find_repeated_key_agrees_with_the_objects_that_were_written(value: Any) -> None:
    assert (find_repeated_key(encoded(value)) is not None) == repeats(value)


@pytest.mark.usefixtures("uncollected")
def test_find_repeated_key_takes_linear_time() -> None:
    body = b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b',"5":1}'
    began = time.process_time()
    assert find_repeated_key(body) == "5"
    # It takes 0.1 s. A search among all earlier names for each name takes more than a minute.
    assert time.process_time() - began < 5
