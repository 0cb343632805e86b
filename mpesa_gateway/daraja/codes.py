"""What Daraja's codes mean, what to do about each, and whether asking again is safe."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

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
"""Why a payment failed, in a stable word."""

FAILURE_REASONS: tuple[str, ...] = get_args(FailureReason)


@dataclass(frozen=True)
class Outcome:
    """How an STK push ended, or that it has not. ``advice`` says what the merchant can do."""

    code: str
    meaning: str
    failure_reason: FailureReason
    advice: str
    is_paid: bool = False
    is_pending: bool = False


@dataclass(frozen=True)
class _Result:
    """One row of the table of result codes."""

    meaning: str
    failure_reason: FailureReason
    advice: str


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
    "26": _Result("M-Pesa is busy", "other", "try again in a while"),
    "9999": _Result("the prompt could not be sent", "other", "try again in a while"),
    "1025": _Result(
        "the prompt could not be sent", "other", "try again; if it persists, shorten reference and description"
    ),
    "1001": _Result(
        "the payer's line is busy with another session", "duplicate_in_progress", "try again after a minute"
    ),
    "1019": _Result("the prompt expired", "timeout", _AGAIN),
    "1031": _Result("the payer cancelled", "cancelled_by_user", "ask the payer whether they want to pay"),
    "1032": _Result("the payer cancelled", "cancelled_by_user", "ask the payer whether they want to pay"),
    "1036": _Result(
        "the payer's phone cannot be reached", "unreachable", "ask the payer to switch it on and try again"
    ),
    "1037": _Result(
        "the payer's phone cannot be reached", "unreachable", "ask the payer to switch it on and try again"
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
"""Result codes of STK pushes: from Safaricom's portal, and as seen by integrations."""

STK_PENDING = frozenset({"4999"})
"""Result codes that mean: not yet."""


def stk_outcome(result_code: str, result_desc: str = "") -> Outcome:
    """What a ResultCode of an STK push means; an unknown one is a failure for reason ``other``."""
    code, said = result_code.strip(), result_desc.lower()
    if code == "0":
        return Outcome("0", "paid", "other", "", is_paid=True)
    if code in STK_PENDING or "under processing" in said or "being processed" in said:
        return Outcome(code, "not ended yet", "other", "wait", is_pending=True)
    row = STK_RESULTS.get(code)
    if row is None:
        return Outcome(code, result_desc or "an unknown result", "other", "see result_desc")
    if code == "1037" and "no response" in said:
        return Outcome(code, "the payer did not respond", "timeout", _AGAIN)
    return Outcome(code, row.meaning, row.failure_reason, row.advice)


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
"""How a reversal ended, in a stable word."""


@dataclass(frozen=True)
class ReversalOutcome:
    """How a reversal ended. ``advice`` says what the merchant can do."""

    word: ReversalWord
    meaning: str
    advice: str


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
"""Result codes of reversals: from Safaricom's portal, and as seen by integrations."""


def reversal_outcome(result_code: str, result_desc: str = "") -> ReversalOutcome:
    """What a ResultCode of a reversal means; an unknown one is ``other``."""
    known = REVERSAL_RESULTS.get(result_code.strip().upper())
    return known or ReversalOutcome("other", result_desc or "an unknown result", "see result_desc")


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
    """What a TransactionStatus means for the money; anything that we do not know is not an end."""
    return _STATES.get("".join(letter for letter in (text or "").lower() if letter.isalpha()), "pending")


NOT_FOUND_RESULTS = frozenset({"2032"})
"""Result codes of a status query that mean: M-Pesa knows no such transaction."""

PULL_OK = frozenset({"1000"})
PULL_EMPTY = frozenset({"1001"})
"""Pull's response codes: rows follow, and there are none (for a registration: done, and done before)."""


class Sent(StrEnum):
    """Whether a request that was answered with a fault has been carried out."""

    NO = "no"
    UNKNOWN = "unknown"
    EARLIER = "earlier"
    """An earlier, equal one was."""


class Retry(StrEnum):
    """What to do about a fault."""

    FIX = "fix"
    NEW_TOKEN = "new_token"  # noqa: S105 - a word, not a token
    BACK_OFF = "back_off"
    AFTER_A_MINUTE = "after_a_minute"
    PENDING = "pending"
    ASK = "ask"
    NEVER = "never"


@dataclass(frozen=True)
class FaultMeaning:
    """What a fault means and what to do about it."""

    code: str
    meaning: str
    mitigation: str
    sent: Sent
    retry: Retry
    failure_reason: FailureReason = "rejected_by_provider"


def _no(code: str, meaning: str, mitigation: str, retry: Retry = Retry.FIX) -> FaultMeaning:
    return FaultMeaning(code, meaning, mitigation, Sent.NO, retry)


FAULTS: dict[str, FaultMeaning] = {
    fault.code: fault
    for fault in (
        _no("400.008.01", "wrong authentication type", "the gateway must use HTTP Basic: report this as a bug"),
        _no("400.008.02", "wrong grant type", "the gateway must ask for client_credentials: report this as a bug"),
        _no("400.002.02", "a field is not valid", "correct the field that the message names"),
        _no("400.002.05", "the request's payload is not valid", "correct what the message names"),
        _no(
            "400.003.01",
            "the access token is not valid",
            "a new token is fetched and the call repeated",
            Retry.NEW_TOKEN,
        ),
        _no(
            "401.001", "the access token is not valid", "a new token is fetched and the call repeated", Retry.NEW_TOKEN
        ),
        _no(
            "404.001.03",
            "the access token is not valid",
            "a new token is fetched and the call repeated",
            Retry.NEW_TOKEN,
        ),
        _no("400.003.02", "bad request", "use your own shortcode with its own passkey and consumer key"),
        _no("401.002.01", "the authorisation header is not valid", "check consumer_key and consumer_secret"),
        _no("404.001.04", "the authorisation header is not valid", "check consumer_key and consumer_secret"),
        _no("404.001.01", "there is no such resource", "check that the app on Safaricom's portal has this API"),
        _no("404.003.01", "there is no such resource", "check that the app on Safaricom's portal has this API"),
        _no("405.001", "the method is not allowed", "check the base URL in the configuration"),
        FaultMeaning(
            "500.002.1001",
            "the same OriginatorConversationID was used before",
            "the earlier request stands: ask for its status",
            Sent.EARLIER,
            Retry.NEVER,
        ),
        _no(
            "500.003.02",
            "spike arrest: too many requests, or the system is busy",
            "try again in a few seconds, more slowly",
            Retry.BACK_OFF,
        ),
        _no("500.003.03", "the quota is used up", "ask Safaricom for a higher quota; try again later", Retry.BACK_OFF),
        FaultMeaning(
            "500.003.1001",
            "internal error at M-Pesa",
            "nothing is known about the request: its result is asked for",
            Sent.UNKNOWN,
            Retry.ASK,
            "other",
        ),
    )
}
"""Fault codes that mean one thing: from the specification, Safaricom's portal, and as seen by integrations."""

_AMBIGUOUS = "500.001.1001"
"""The code that means four things, told apart by its message."""

KNOWN_FAULTS = frozenset({*FAULTS, _AMBIGUOUS})
"""Every fault code that this table knows."""


def read_fault(http_status: int, code: str | None, message: str | None) -> FaultMeaning:
    """What a fault means. Without a code that we know, a 4xx is a refusal and anything else says nothing."""
    if code == _AMBIGUOUS:
        return _read_ambiguous((message or "").lower())
    known = FAULTS.get(code or "")
    if known is not None:
        return known
    if code and 400 <= http_status < 500:
        return _no(code, "M-Pesa refused the request", "see the provider's message")
    return FaultMeaning(
        code or f"http_{http_status}",
        "M-Pesa's answer does not say what became of the request",
        "its result is asked for",
        Sent.UNKNOWN,
        Retry.ASK,
        "other",
    )


def _read_ambiguous(message: str) -> FaultMeaning:
    if "lock subscriber" in message:
        return FaultMeaning(
            _AMBIGUOUS,
            "the payer's line is busy with another prompt",
            "try again after a minute",
            Sent.NO,
            Retry.AFTER_A_MINUTE,
            "duplicate_in_progress",
        )
    if "being processed" in message or "under processing" in message:
        return FaultMeaning(_AMBIGUOUS, "not ended yet", "ask again", Sent.UNKNOWN, Retry.PENDING, "other")
    if "credentials" in message:
        return _no(_AMBIGUOUS, "shortcode, passkey and timestamp do not fit together", "check shortcode and passkey")
    if "merchant" in message:
        return _no(_AMBIGUOUS, "the shortcode is not known", "check shortcode; ask Safaricom to enable STK push for it")
    if "not exist" in message:
        # Reported for live pushes some 20 seconds old: it proves nothing.
        return FaultMeaning(
            _AMBIGUOUS, "M-Pesa does not know it (yet)", "ask again", Sent.UNKNOWN, Retry.PENDING, "other"
        )
    return FaultMeaning(
        _AMBIGUOUS,
        "M-Pesa's answer does not say what became of the request",
        "its result is asked for",
        Sent.UNKNOWN,
        Retry.ASK,
        "other",
    )
