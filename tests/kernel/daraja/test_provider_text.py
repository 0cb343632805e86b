"""Protects texts of M-Pesa for merchants, logs and rows: no credentials, phone numbers or control characters."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.daraja.provider_text import mask_secrets, provider_text

TOKEN = "x9Qk3sWWhmdVRlyh0zh8gZDTkub2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Error Occurred - Invalid Access Token - abc", "Error Occurred - Invalid Access Token - ****"),
        (f"Invalid Access Token {TOKEN}", "Invalid Access Token ****"),
        (f"Bearer {TOKEN} was refused", "Bearer **** was refused"),
        (f"no {TOKEN} here", "no **** here"),
        ("token: x9Qk", "token: ****"),
        ("Authorization: Basic a2V5OnNlY3JldA== refused", "Authorization: Basic **** refused"),
        ("Invalid Access Token", "Invalid Access Token"),
        (
            "Invalid Access Token - Invalid API call as no apiproduct match found",
            "Invalid Access Token - Invalid API call as no apiproduct match found",
        ),
        ("Bad Request - Invalid PhoneNumber 254711000001", "Bad Request - Invalid PhoneNumber 2547****001"),
        ("+254 711 000 001", "2547****001"),
        ("0711-000-001", "07****001"),
        ("msisdn=711000001;", "msisdn=7****001;"),
        ("tel254711000001x", "tel2547****001x"),
        ("ws_CO_23112026101500708374149", "ws_CO_231120261015007****149"),
        ("AG_20261123_2010a1b2c3d4e5f60718", "AG_20261123_2010a1b2c3d4e5f60718"),
        ("Invalid Timestamp 20261123101500", "Invalid Timestamp 20261123101500"),
        ("[STK_CB - ]Request cancelled by user", "[STK_CB - ]Request cancelled by user"),
        ("a\r\nb\tc\x00d\x1b[31m\u202ee\ud800f\u2028g", "a b c d [31m e f g"),
        ("  ", ""),
        ('{"access_token": "abcdefghij", "Password":"pq"}', '{"access_token": "****", "Password":"pq"}'),
        ("{'passkey': 'abcdefghij'}", "{'passkey': '****'}"),
        ("(0711) 000001", "(07****001"),
        ("0711/000/001 or 0711_000_001", "07****001 or 07****001"),
        ("00254711000001", "2547****001"),
        ("\uff12\uff15\uff14\uff17\uff11\uff11\uff10\uff10\uff10\uff10\uff10\uff11", "2547****001"),
        ("<token>abc123</token>", "<token>****</token>"),
        ("&lt;token&gt;abc123", "&lt;token&gt;****"),
        ("SecurityCredential: abc12345", "SecurityCredential: ****"),
        ("apikey=abcdef1", "apikey=****"),
        ("\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660", "\u0660" * 9),
        ("Initiator password P@ssw0rd!", "Initiator password ****"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-x", "****"),
        ("key bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919", "key ****"),
    ],
)
def test_provider_text_is_masked_and_printable(text: str, shown: str) -> None:
    assert provider_text(text) == shown
    assert provider_text(shown) == shown


@given(st.text(max_size=200), st.integers(0, 999_999_999), st.text(max_size=200), st.sampled_from(["254", "+254", "0"]))
def test_provider_text_never_has_a_phone_or_a_control_character(before: str, number: int, after: str, how: str) -> None:
    phone = f"{how}7{number % 100_000_000:08}"
    shown = provider_text(f"{before} {phone} {after}")
    assert len(shown) <= 300
    assert phone not in shown
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\ud800-\udfff]", shown)


@given(st.text("abcdefghijkABCDEFGHIJK0123456789", min_size=25, max_size=60), st.text(max_size=80))
def test_provider_text_never_has_a_named_token(token: str, before: str) -> None:
    assert provider_text(f"{before} access token: {token}").endswith("access token: ****")


@pytest.mark.parametrize(
    "unit", ["1", "a1A", "token ", "token - ", "token:", "- ", "0 ", "aA1/", "7 ", "\ud800", "ws_CO_1"]
)
@pytest.mark.usefixtures("uncollected")
def test_provider_text_takes_linear_time(unit: str) -> None:
    began = time.process_time()
    provider_text(unit * 20_000)
    assert time.process_time() - began < 0.5


def test_without_removes_secrets_and_leaves_short_ones() -> None:
    body = b'{"a": "secret/with+slash", "b": "secret\\/with+slash", "c": "key"}'
    assert mask_secrets(body, ("secret/with+slash", "key", "")) == b'{"a": "****", "b": "****", "c": "key"}'
