"""M-Pesa's result codes for payments, with advice for merchants."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from mpesa_gateway.daraja.numerals import canonical

SUCCESS_TEXT = "The service request is processed successfully."
"""M-Pesa's text for code 0. A payment with code 0 and this text stores NULL."""

FailureReason = Literal[
    "insufficient_funds",
    "cancelled_by_user",
    "wrong_pin",
    "timeout",
    "unreachable",
    "limit_exceeded",
    "duplicate_in_progress",
    "rejected_by_provider",
    "expired",
    "not_sent",
    "other",
]
"""Stable failure reasons of payments."""

FAILURE_REASONS: tuple[str, ...] = get_args(FailureReason)


@dataclass(frozen=True)
class Outcome:
    """The outcome of an STK push.

    ``advice`` is for the merchant. ``is_final``: no later money is expected. ``is_known``: the table has the code.
    """

    code: str
    meaning: str
    failure_reason: FailureReason
    advice: str
    is_paid: bool = False
    is_pending: bool = False
    is_final: bool = False
    is_known: bool = True


@dataclass(frozen=True)
class _Result:
    meaning: str
    failure_reason: FailureReason
    advice: str
    is_final: bool = True


_AGAIN = "ask the payer to try again"

STK_RESULTS: dict[str, _Result] = {
    "1": _Result("the payer's balance is too low", "insufficient_funds", "try again after the payer has topped up"),
    "2": _Result("the amount is below M-Pesa's minimum", "limit_exceeded", "ask for another amount"),
    "3": _Result("the amount is above M-Pesa's maximum", "limit_exceeded", "ask for another amount"),
    "4": _Result("the payer's daily limit would be exceeded", "limit_exceeded", "ask for another amount, or tomorrow"),
    "8": _Result("the receiver's balance limit would be exceeded", "limit_exceeded", "empty the shortcode's account"),
    "17": _Result(
        "the same amount was just asked of this payer", "duplicate_in_progress", "wait two minutes, then try again"
    ),
    "26": _Result("M-Pesa is busy", "other", "try again in a while", is_final=False),
    "9999": _Result("the prompt could not be sent", "other", "try again in a while", is_final=False),
    "1025": _Result(
        "the prompt could not be sent", "other", "try again; if it persists, shorten reference and description"
    ),
    "1001": _Result(
        "the payer's line is busy with another session", "duplicate_in_progress", "try again after a minute"
    ),
    "1019": _Result("the prompt expired", "timeout", _AGAIN, is_final=False),
    "1031": _Result("the payer cancelled", "cancelled_by_user", "ask the payer whether they want to pay"),
    "1032": _Result("the payer cancelled", "cancelled_by_user", "ask the payer whether they want to pay"),
    "1036": _Result(
        "the payer's phone cannot be reached",
        "unreachable",
        "ask the payer to switch it on and try again",
        is_final=False,
    ),
    "1037": _Result(
        "the payer's phone cannot be reached",
        "unreachable",
        "ask the payer to switch it on and try again",
        is_final=False,
    ),
    "2001": _Result("the payer entered a wrong PIN", "wrong_pin", _AGAIN),
    "2028": _Result(
        "the shortcode may not receive this kind of payment",
        "rejected_by_provider",
        "correct shortcode and till_number in the stored credentials",
    ),
    "SFC_IC0003": _Result(
        "there is no such receiver",
        "rejected_by_provider",
        "correct shortcode and till_number in the stored credentials",
    ),
    "8006": _Result("the payer's PIN is locked", "rejected_by_provider", "the payer has to call Safaricom at 100"),
}
"""Result codes of STK pushes, from Safaricom's portal and from integrations."""

STK_PENDING = frozenset({"4999"})
"""Result codes of a pending push."""


STK_UNDECIDED = frozenset({"26", "9999"})
"""Result codes by which M-Pesa reports its own failure when queried."""


def stk_outcome(result_code: str, result_desc: str = "") -> Outcome:
    """Return the outcome of an STK callback. An unknown code is a failure for ``other``, not final."""
    code, description = canonical(result_code), result_desc.lower()
    if code == "0":
        return Outcome("0", "paid", "other", "", is_paid=True)
    if code in STK_PENDING or "under processing" in description or "being processed" in description:
        return Outcome(code, "not ended yet", "other", "wait", is_pending=True)
    row = STK_RESULTS.get(code) or STK_RESULTS.get(code.upper())
    if row is None:
        return Outcome(code, result_desc or "an unknown result", "other", "see result_desc", is_known=False)
    if code == "1037" and "no response" in description:
        return Outcome(code, "the payer did not respond", "timeout", _AGAIN)
    return Outcome(code, row.meaning, row.failure_reason, row.advice, is_final=row.is_final)


def stk_query_outcome(result_code: str, result_desc: str = "") -> Outcome:
    """Return the outcome of an STK query.

    An unknown code or M-Pesa's own failure is pending. A failure that only a query reports is never final.
    """
    outcome = stk_outcome(result_code, result_desc)
    if not outcome.is_paid and (not outcome.is_known or outcome.code in STK_UNDECIDED):
        return replace(outcome, advice="wait", is_pending=True, is_final=False)
    return replace(outcome, is_final=False)


TransactionState = Literal["completed", "failed", "reversed", "partially_reversed", "pending"]

_STATES: dict[str, TransactionState] = {
    "completed": "completed",
    "cancelled": "failed",
    "declined": "failed",
    "expired": "failed",
    "failed": "failed",
    "reversed": "reversed",
    "partiallyreversed": "partially_reversed",
    "partialreversed": "partially_reversed",
    "partialreversal": "partially_reversed",
    "reversedpartially": "partially_reversed",
}


def transaction_state(text: str | None) -> TransactionState:
    """Return the state for a TransactionStatus; unknown ones are pending."""
    return _STATES.get("".join(letter for letter in (text or "").lower() if letter.isalpha()), "pending")


NOT_FOUND_RESULTS = frozenset({"2032"})
"""Result codes for an unknown transaction."""
