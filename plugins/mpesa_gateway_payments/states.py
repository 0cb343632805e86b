"""Statuses of payments and the allowed transitions."""

from enum import StrEnum

from mpesa_gateway_payments.result_codes import FailureReason


class Status(StrEnum):
    """The status of a payment."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"
    REVERSED = "reversed"
    PARTIALLY_REVERSED = "partially_reversed"


class Charge(StrEnum):
    """The state of a payment's STK push."""

    READY = "ready"
    """Committed, nothing sent: only the process with the key's lease may send it."""
    SENDING = "sending"
    """Committed immediately before the call: in flight, or lost in a crash."""
    RELEASED = "released"
    """Nothing was sent; the key can be retried."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """Sent without a usable answer; never resent."""


class Cause(StrEnum):
    """The cause of a payment's change."""

    MERCHANT = "merchant"
    ACK = "ack"
    FAULT = "fault"
    CALLBACK = "callback"
    STK_QUERY = "stk_query"
    EXPIRY = "expiry"
    STATUS_QUERY = "status_query"
    STATEMENT = "statement"
    C2B = "c2b"
    REVERSAL = "reversal"
    OPERATOR = "operator"


TRANSITIONS: frozenset[tuple[Status, Status]] = frozenset(
    {
        (Status.PENDING, Status.COMPLETED),
        (Status.PENDING, Status.FAILED),
        # By a receipt, or by M-Pesa's own answer if the failure was not final.
        (Status.FAILED, Status.COMPLETED),
        (Status.COMPLETED, Status.REVERSED),
        (Status.COMPLETED, Status.PARTIALLY_REVERSED),
        (Status.PARTIALLY_REVERSED, Status.PARTIALLY_REVERSED),
        (Status.PARTIALLY_REVERSED, Status.REVERSED),
    }
)
"""All allowed transitions."""


def is_transition_allowed(now: Status, to: Status, *, has_receipt: bool, is_final: bool = True) -> bool:
    """``has_receipt``: money has moved. ``is_final``: the failure was final."""
    if (now, to) == (Status.FAILED, Status.COMPLETED):
        return has_receipt or not is_final
    return (now, to) in TRANSITIONS


__all__ = ["TRANSITIONS", "Cause", "Charge", "FailureReason", "Status", "is_transition_allowed"]
