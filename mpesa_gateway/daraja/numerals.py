"""Exact parsing of Daraja's numbers, without floats."""

import re
from decimal import Decimal

_NUMERAL = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?\Z", re.ASCII)
_MOST_DIGITS = 40


def read_number(text: str) -> Decimal | None:
    """Return the value, or None for text, NaN, Infinity and over 40 digits."""
    if not _NUMERAL.match(text):
        return None
    number = Decimal(text)
    return number if number.adjusted() < _MOST_DIGITS else None


def canonical(text: str) -> str:
    """Return a whole number as its digits, other text trimmed.

    ``"00000000"`` and ``"0.0"`` become ``"0"``, ``"1e2"`` becomes ``"100"``.
    """
    trimmed = text.strip()
    number = read_number(trimmed)
    if number is None or number != number.to_integral_value():
        return trimmed
    return str(int(number))
