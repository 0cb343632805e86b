"""Protects from characters that hide or reverse text, in any input."""

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.control_characters import escape_control_characters
from mpesa_gateway.daraja.provider_text import provider_text
from mpesa_gateway.logs import mask

HIDDEN = frozenset(
    chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
)


def test_escape_unseen_leaves_none_but_line_breaks_and_tabs() -> None:
    escaped = escape_control_characters("".join(HIDDEN))
    assert set(escaped) & HIDDEN == {"\n", "\t"}
    assert escape_control_characters("a\x1b[2J\u202eb\U000e0041\n") == "a\\u001b[2J\\u202eb\\U000e0041\n"
    assert escape_control_characters("Café \u4e2d 😀") == "Café \u4e2d 😀"


def test_provider_text_leaves_no_hidden_characters() -> None:
    for at in range(0, len(HIDDEN), 200):
        assert set(provider_text("x".join(sorted(HIDDEN)[at : at + 200]))) <= {"x", " "}


@given(st.text())
def test_logged_text_has_no_hidden_characters_and_can_be_encoded(text: str) -> None:
    shown = mask(None, "info", {"handle": text})["handle"]
    assert not set(shown) & (HIDDEN - {"\n", "\t"})
    shown.encode()
