"""Result codes of reversals, with their meaning and the next step."""

from dataclasses import dataclass
from typing import Literal

from mpesa_gateway.daraja.numerals import canonical

ReversalWord = Literal[
    "reversed",
    "already_reversed",
    "invalid_transaction",
    "insufficient_merchant_balance",
    "account_inactive",
    "initiator_not_allowed",
    "initiator_invalid",
    "not_permitted",
    "initiator_locked",
    "rejected_by_provider",
    "other",
]
"""Stable words for the outcome of a reversal."""


@dataclass(frozen=True)
class ReversalOutcome:
    """The outcome of a reversal. ``advice`` is the merchant's next step.

    ``is_known``: the code is in the table. An unknown code does not prove that no money was sent back.
    """

    word: ReversalWord
    meaning: str
    advice: str
    is_known: bool = True


REVERSAL_RESULTS: dict[str, ReversalOutcome] = {
    "0": ReversalOutcome("reversed", "the money went back to the payer", ""),
    "R000001": ReversalOutcome(
        "already_reversed", "this payment has been reversed before", "M-Pesa is asked to confirm it"
    ),
    "R000002": ReversalOutcome(
        "invalid_transaction", "M-Pesa knows no such transaction", "check the payment's receipt with check-status"
    ),
    "1": ReversalOutcome(
        "insufficient_merchant_balance",
        "the shortcode's balance is too low",
        "top up the shortcode's account, then ask for the refund again",
    ),
    "11": ReversalOutcome("account_inactive", "the account is not active", "ask Safaricom to activate the shortcode"),
    "2006": ReversalOutcome("account_inactive", "the account is not active", "ask Safaricom to activate the shortcode"),
    "21": ReversalOutcome(
        "initiator_not_allowed",
        "the initiator may not reverse",
        "give the initiator the role Org Reversals Initiator on the M-Pesa organisation portal",
    ),
    "2001": ReversalOutcome(
        "initiator_invalid",
        "the initiator's credentials are wrong",
        "store initiator and initiator_password again, with the right env",
    ),
    "2028": ReversalOutcome(
        "not_permitted", "the shortcode may not reverse", "ask Safaricom to enable reversals for the shortcode"
    ),
    "8006": ReversalOutcome(
        "initiator_locked", "the initiator is locked", "unlock the API user on the M-Pesa organisation portal"
    ),
}
"""Sources: Safaricom's portal, and codes seen by integrations."""


def reversal_outcome(result_code: str, result_desc: str = "") -> ReversalOutcome:
    """Return the outcome of a ResultCode; an unknown code is ``other`` and proves nothing about the money."""
    known = REVERSAL_RESULTS.get(canonical(result_code).upper())
    return known or ReversalOutcome("other", result_desc or "an unknown result", "see result_desc", is_known=False)
