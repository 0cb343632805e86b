"""Invariants of the inbox that constraints cannot express."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="waiting_is_due",
        sentence="A waiting callback has the time of its next attempt",
        sql="SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at IS NULL",
    ),
    Invariant(
        name="nothing_overdue",
        sentence="No waiting callback is overdue",
        sql="SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at < $1",
        grace=timedelta(minutes=10),
    ),
)
