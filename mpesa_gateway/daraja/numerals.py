"""Numbers as Daraja writes them: ``0``, ``"0"``, ``0.0``, ``"00000000"`` and ``1e2``, compared as numbers.

No value passes through a float: a large integer keeps each of its digits.
"""

import re
from decimal import Decimal

_NUMERAL = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?\Z", re.ASCII)
_MOST_DIGITS = 40


def read_number(text: str) -> Decimal | None:
    """The exact value of a numeral. None for a word, NaN, Infinity, and a number of more than 40 digits."""
    if not _NUMERAL.match(text):
        return None
    number = Decimal(text)
    return number if number.adjusted() < _MOST_DIGITS else None


def canonical(text: str) -> str:
    """The one form of a code, an identifier or a time: a whole number as its digits, any other text trimmed.

    ``"00000000"``, ``"0.0"`` and ``"0"`` are ``"0"``; ``"1e2"`` is ``"100"``; ``"SFC_IC0003"`` stays.
    """
    trimmed = text.strip()
    number = read_number(trimmed)
    if number is None or number != number.to_integral_value():
        return trimmed
    return str(int(number))
