"""The next step of an unpaid payment, for the person who reads its page."""

from datetime import datetime

from mpesa_gateway.db.engine import Row
from mpesa_gateway.local_time import format_near
from mpesa_gateway_payments.states import Charge, Status

_WAIT = "Do not ask the customer again yet."
_CLEAR = "Nothing was paid. The customer can be asked again, with a new payment."


def next_step(row: Row, now: datetime) -> str | None:
    """Return when the gateway acts next and what to do until then; None for paid payments."""
    if row["mismatch"] is not None or row["status"] not in {Status.PENDING.value, Status.FAILED.value}:
        return None
    if row["claim"] is not None:
        return f"A report says paid. {_asks(row, now)} to confirm it. {_WAIT}"
    return _after_failure(row, now) if row["status"] == Status.FAILED.value else _while_pending(row, now)


def _while_pending(row: Row, now: datetime) -> str:
    ends = f"the gateway gives up at {format_near(row['expires_at'], now)}"
    if row["charge"] == Charge.RELEASED.value:
        return f"The STK push was not sent. A call with the same Idempotency-Key sends it; {ends}."
    if row["expires_at"] <= now:
        return f"The time for an answer has passed: the payment ends within a minute. {_WAIT}"
    if row["checkout_request_id"] is None:
        return f"M-Pesa has not acknowledged the STK push. Its callback can still arrive; {ends}. {_WAIT}"
    if row["due_at"] is None or row["due_at"] >= row["expires_at"]:
        return f"M-Pesa's callback can still arrive; {ends}. {_WAIT}"
    return f"{_asks(row, now)}; {ends}. {_WAIT}"


def _after_failure(row: Row, now: datetime) -> str | None:
    if row["outcome_is_final"]:
        return _CLEAR
    if row["due_at"] is not None:
        return (
            f"M-Pesa has not reported an outcome. {_asks(row, now)}; if the customer has paid, the payment becomes "
            "completed. Ask for the customer's M-Pesa message before you ask for money again."
        )
    return (
        "This failure is not M-Pesa's final word: a receipt that arrives later completes the payment. Ask for the "
        "customer's M-Pesa message before you ask for money again."
    )


def _asks(row: Row, now: datetime) -> str:
    due = row["due_at"]
    if due is None or due <= now:
        return "M-Pesa is being asked now"
    return f"M-Pesa is asked again at {format_near(due, now)}"
