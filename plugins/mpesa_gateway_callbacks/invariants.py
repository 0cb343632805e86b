"""What always holds in the inbox of callbacks, besides what Postgres itself refuses."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant is a statement that the ledger's query encloses.
INVARIANTS = (
    Invariant(
        name="waiting_is_due",
        sentence="A callback that nobody could use yet has a time when it is offered again",
        sql="SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at IS NULL",
    ),
    Invariant(
        name="nothing_overdue",
        sentence="No callback waits to be offered again",
        sql="SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at < $1",
        grace=timedelta(minutes=10),
    ),
)
