"""Money: whole Kenya shillings inside, decimal strings like "500.00" outside."""

import re
from decimal import Decimal, InvalidOperation
from typing import Self

MINIMUM = 1
MAXIMUM = 250_000
"""Limit of one transaction in KES, by Safaricom's tariff."""

_DIGITS = 12
"""Longer input is rejected early."""

_OUTSIDE = re.compile(rf"-[0-9]+(?:\.[0-9]*)?|[1-9][0-9]{{{_DIGITS},}}", re.ASCII)
"""Negative, or longer than any amount."""


class InvalidAmount(ValueError):
    """The text names the fix."""


class Kes(int):
    """Whole Kenya shillings. M-Pesa moves no cents."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Decimal | int | str) -> Self:
        """Parse ``500``, ``"500"`` or ``"500.00"``, never through a float.

        Raises InvalidAmount for cents, signs and exponents.
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
        is_outside = not isinstance(value, bool) and _OUTSIDE.fullmatch(str(value).strip()) is not None
        amount = None if is_outside else cls.parse(value)
        if amount is None or not MINIMUM <= amount <= MAXIMUM:
            raise InvalidAmount(f"must be between {MINIMUM} and {MAXIMUM} KES, the limits of one M-Pesa transaction")
        return amount

    @classmethod
    def parse_json(cls, raw: bytes) -> Self:
        text = bytes(raw).decode("utf-8", "replace").strip()
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = text[1:-1]
        return cls.parse_payable(text)

    @property
    def wire(self) -> str:
        """Decimal string: ``"500.00"``."""
        return f"{int(self)}.00"

    def __str__(self) -> str:
        # Without it, text would show __repr__.
        return int.__repr__(self)

    def __repr__(self) -> str:
        return f"Kes({int(self)})"


def cents_text(cents: int) -> str:
    """Return cents in the API's format: ``"500.05"``."""
    shillings, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{shillings}.{rest:02}"


def payable(cents: int | None) -> Kes | None:
    """Return whole KES that a payment can ask for; None for another amount."""
    shillings, rest = divmod(cents or 0, 100)
    return Kes(shillings) if rest == 0 and MINIMUM <= shillings <= MAXIMUM else None
