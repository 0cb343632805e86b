"""Invariants of the kernel's tables that Postgres does not enforce."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="rules_are_on",
        sentence="No constraint, trigger or index of the tables is switched off or half made",
        sql="""
            SELECT conrelid::regclass || '.' || conname FROM pg_constraint
            WHERE connamespace = current_schema()::regnamespace AND NOT convalidated
            UNION ALL
            SELECT tgrelid::regclass || '.' || tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
            WHERE relnamespace = current_schema()::regnamespace AND tgenabled <> 'O'
            UNION ALL
            SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
            WHERE relnamespace = current_schema()::regnamespace AND NOT (indisvalid AND indisready)
        """,
    ),
    Invariant(
        name="subscribers_are_called",
        sentence="No subscriber of an event waits to be called",
        sql="""
            SELECT id_text(event_id) || ' ' || subscriber FROM event_task
            WHERE done_at IS NULL AND due_at < $1 AND (leased_until IS NULL OR leased_until < $1)
        """,
        grace=timedelta(minutes=10),
    ),
)
