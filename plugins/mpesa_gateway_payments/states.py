"""What a payment can be, and the only moves between those states."""

from enum import StrEnum

from mpesa_gateway_payments.result_codes import FailureReason


class Status(StrEnum):
    """Where a payment stands."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"
    REVERSED = "reversed"
    PARTIALLY_REVERSED = "partially_reversed"


class Charge(StrEnum):
    """Where the one STK push of a payment stands."""

    READY = "ready"
    """Committed, and nothing sent: only the process that holds the lease of the key may send it."""
    SENDING = "sending"
    """Committed immediately before the call: it may be under way, or have been cut off by a crash."""
    RELEASED = "released"
    """Nothing was sent; the same Idempotency-Key may try again."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """Sent, and no answer that says what became of it. Never sent again by us."""


class Cause(StrEnum):
    """What moved a payment."""

    MERCHANT = "merchant"
    ACK = "ack"
    FAULT = "fault"
    CALLBACK = "callback"
    STK_QUERY = "stk_query"
    EXPIRY = "expiry"
    STATUS_QUERY = "status_query"
    STATEMENT = "statement"
    REVERSAL = "reversal"
    OPERATOR = "operator"


MOVES: frozenset[tuple[Status, Status]] = frozenset(
    {
        (Status.PENDING, Status.COMPLETED),
        (Status.PENDING, Status.FAILED),
        # By a receipt, or by M-Pesa's own answer where the failure was not its last word.
        (Status.FAILED, Status.COMPLETED),
        (Status.COMPLETED, Status.REVERSED),
        (Status.COMPLETED, Status.PARTIALLY_REVERSED),
        (Status.PARTIALLY_REVERSED, Status.PARTIALLY_REVERSED),
        (Status.PARTIALLY_REVERSED, Status.REVERSED),
    }
)
"""Every move there is."""


def may_move(now: Status, to: Status, *, has_receipt: bool, is_final: bool = True) -> bool:
    """Return whether a payment may go from one status to another.

    ``has_receipt``: there is proof that money moved. ``is_final``: the failure was M-Pesa's last word.
    """
    if (now, to) == (Status.FAILED, Status.COMPLETED):
        return has_receipt or not is_final
    return (now, to) in MOVES


def sources(to: Status, *, has_receipt: bool, is_final: bool = True) -> list[str]:
    """Return the statuses that a payment may come from: what the transition's WHERE clause names."""
    return [status.value for status in Status if may_move(status, to, has_receipt=has_receipt, is_final=is_final)]


__all__ = ["MOVES", "Cause", "Charge", "FailureReason", "Status", "may_move", "sources"]
