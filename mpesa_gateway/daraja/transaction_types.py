"""Transaction types as the Pull Transactions API and the statement name them."""

import re
from typing import Literal

_LETTERS = re.compile(r"[^a-z0-9]+")

_INCOMING: dict[str, bool] = {
    "c2bpaybilldebit": False,
    "c2bpaybill": False,
    "paybill": False,
    "customerpaybillonline": False,
    "c2bbuygoodsdebit": True,
    "c2bbuygoods": True,
    "buygoods": True,
    "customerbuygoodsonline": True,
    "customermerchantpayment": True,
}
"""Customers' payments, letters only; True for a till."""

_OUTGOING = ("revers", "b2c", "b2b", "payout", "charge", "withdraw", "salary", "promotion", "businesspayment")


def read_transaction_type(kind: str | None) -> tuple[Literal["in", "out"] | None, bool]:
    """Return the direction that a ``transactiontype`` states, None if unknown, and True for a till."""
    word = _LETTERS.sub("", (kind or "").casefold())
    if word in _INCOMING:
        return "in", _INCOMING[word]
    return ("out", False) if any(part in word for part in _OUTGOING) else (None, "buygoods" in word)
