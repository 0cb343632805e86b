"""Amounts of money: whole Kenya shillings inside, decimal strings like "500.00" outside."""

from decimal import Decimal, InvalidOperation
from typing import Self

MINIMUM = 1
MAXIMUM = 250_000
"""The least and the most that one M-Pesa transaction may move, in KES (Safaricom's published tariff)."""

_DIGITS = 12
"""More digits than any amount of money needs: longer input is refused before it is computed with."""


class InvalidAmount(ValueError):
    """What was given is not a whole, sensible number of shillings. The text says what to send instead."""


class Kes(int):
    """A whole number of Kenya shillings. M-Pesa moves no cents."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Decimal | int | str) -> Self:
        """Read an amount as it stands in JSON, a form or a statement line, never through a float.

        Takes ``500``, ``"500"``, ``"500.00"``. Raises InvalidAmount for cents, signs, exponents, or words.
        """
        text = str(value).strip() if not isinstance(value, bool) else ""
        if not text or len(text) > _DIGITS or not text.isascii():
            raise InvalidAmount('send a whole number of KES, such as 500 or "500.00"')
        try:
            number = Decimal(text)
        except InvalidOperation:
            raise InvalidAmount('send a whole number of KES, such as 500 or "500.00"') from None
        if not number.is_finite() or not set(text) <= set("0123456789."):
            raise InvalidAmount('send a whole number of KES, such as 500 or "500.00"')
        if number != number.to_integral_value():
            raise InvalidAmount("M-Pesa moves whole shillings only: send an amount without cents")
        return cls(int(number))

    @classmethod
    def parse_payable(cls, value: Decimal | int | str) -> Self:
        """Like parse, and between 1 and 250,000 KES, the limits of one M-Pesa transaction."""
        amount = cls.parse(value)
        if not MINIMUM <= amount <= MAXIMUM:
            raise InvalidAmount(f"must be between {MINIMUM} and {MAXIMUM} KES, the limits of one M-Pesa transaction")
        return amount

    @classmethod
    def parse_json(cls, raw: bytes) -> Self:
        """Read an amount as it stands in a JSON body, a number or a text, digit for digit; payable as above."""
        text = bytes(raw).decode("utf-8", "replace").strip()
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = text[1:-1]
        return cls.parse_payable(text)

    @property
    def wire(self) -> str:
        """The decimal string that goes over the wire: ``"500.00"``."""
        return f"{int(self)}.00"

    def __repr__(self) -> str:
        return f"Kes({int(self)})"
