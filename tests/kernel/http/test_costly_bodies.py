"""Protects the event loop from bodies that cost far more than their length."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http import validation
from mpesa_gateway.http.json_keys import find_repeated_key
from mpesa_gateway.http.json_syntax import explain_syntax
from mpesa_gateway.http.validation import read_body

LENGTH = 65_536
"""http.max_body_bytes."""


def test_repeated_key_below_many_lists_is_found_in_bounded_memory() -> None:
    depth = 900
    zeros = (LENGTH - 2 * depth - 40) // 2
    body = b'{"b":' + b"[" * depth + b"0," * zeros + b'{"a":1,"a":2}' + b"]" * depth + b"}"
    assert len(body) <= LENGTH
    tracemalloc.start()
    try:
        assert find_repeated_key(body) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * LENGTH, f"{peak / 1e6:.0f} MB for {len(body)} bytes"


@pytest.mark.parametrize("start", [b"[", b'{"a":'])
def test_body_cut_at_any_depth_is_explained(start: bytes) -> None:
    failed: list[int] = []
    for depth in range(1, 1200):
        try:
            explain_syntax(start * depth)
        except RecursionError:
            failed.append(depth)
    assert failed == []


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    number: str


class _Many(msgspec.Struct, forbid_unknown_fields=True):
    account_numbers: list[_Row]


@pytest.mark.parametrize("item", [b"0", b"0.5", b"{}", b'{"a":1}'])
def test_body_of_wrong_items_is_decoded_no_further_than_its_shown_errors(
    item: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[msgspec.Raw] = []
    is_valid: Callable[[msgspec.Raw, Any], bool] = vars(validation)["_is_valid"]

    def noted(raw: msgspec.Raw, kind: Any) -> bool:
        decoded.append(raw)
        return is_valid(raw, kind)

    monkeypatch.setattr(validation, "_is_valid", noted)
    body = b'{"account_numbers":[' + b",".join([item] * ((LENGTH - 30) // (len(item) + 1))) + b"]}"
    with pytest.raises(InvalidFields):
        read_body(body, _Many)
    assert len(decoded) <= 20
