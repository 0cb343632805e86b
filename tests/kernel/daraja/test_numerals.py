"""Protects numbers in Daraja's spellings: equal values have one form, and no digit is lost."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.daraja.numerals import canonical, read_number


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("0", "0"),
        ("00000000", "0"),
        ("0.0", "0"),
        ("-0", "0"),
        ("0e9", "0"),
        ("1e2", "100"),
        ("1E+2", "100"),
        ("254711000001.0", "254711000001"),
        ("2.54711000001e11", "254711000001"),
        ("20261129143005.0", "20261129143005"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("99999999999999999999999.0", "99999999999999999999999"),
        (" 1032 ", "1032"),
        ("0.5", "0.5"),
        ("R000001", "R000001"),
        ("SFC_IC0003", "SFC_IC0003"),
        ("500.001.1001", "500.001.1001"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("1_000", "1_000"),
        ("1e99", "1e99"),
        ("1e999999999", "1e999999999"),
        ("9" * 41, "9" * 41),
        ("\u0661", "\u0661"),
        ("", ""),
    ],
)
def test_canonical_equal_values_have_one_form(text: str, one: str) -> None:
    assert canonical(text) == one


@given(st.integers(-(10**39), 10**39), st.integers(0, 12))
def test_canonical_any_spelling_of_an_integer_is_its_digits(number: int, zeros: int) -> None:
    for text in (f"{number}", f"{number}.{'0' * (zeros + 1)}", f"{Decimal(number):.39e}"):
        assert canonical(text) == str(number)


@given(st.text(max_size=60))
def test_read_number_is_finite_or_none(text: str) -> None:
    number = read_number(text)
    assert number is None or number.is_finite()
