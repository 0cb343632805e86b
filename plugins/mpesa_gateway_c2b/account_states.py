"""Account numbers: normalisation, states and crossings, without I/O."""

import unicodedata
from typing import Literal

AccountState = Literal["open", "unpaid", "part_paid", "paid", "overpaid"]
"""``open``: no amount is expected."""


def normalise(typed: str | None) -> str:
    """Return an account number for comparison: case, width and extra blanks do not count."""
    return " ".join(unicodedata.normalize("NFKC", typed or "").split()).upper()


def state_of(received_cents: int, expected_cents: int | None) -> AccountState:
    if expected_cents is None:
        return "open"
    if received_cents <= 0:
        return "unpaid"
    if received_cents == expected_cents:
        return "paid"
    return "part_paid" if received_cents < expected_cents else "overpaid"


def crossed(
    received_cents: int, expected_cents: int | None, now_received: int, now_expected: int | None
) -> AccountState | None:
    """Return the new state, or None if it is the former one."""
    former, new = state_of(received_cents, expected_cents), state_of(now_received, now_expected)
    return None if new == former else new


def as_text(cents: int) -> str:
    """Return cents in the API's form: ``"500.00"``."""
    sign, (shillings, rest) = "-" if cents < 0 else "", divmod(abs(cents), 100)
    return f"{sign}{shillings}.{rest:02}"


def as_cents(text: str) -> int:
    """Return the cents of an amount in the API's form."""
    shillings, _, rest = text.partition(".")
    return int(shillings) * 100 + int(rest)
