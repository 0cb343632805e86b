"""Protects the constraints of the reconciliation tables: each has a statement that violates it."""

from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

ROWS = f"""
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
SELECT {literal("run", 1)}, merchant_id, 'sandbox', '174379', 'cron', now() - interval '2 hours', now(), now(), now(),
    receiver_id
FROM merchant, receiver;
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, occurred_at, first_source)
SELECT {literal("txn")}, merchant_id, 'sandbox', receiver_id, 'in', 'TKN4A1B2C3', now(), 'pull'
FROM merchant, receiver;
INSERT INTO statement_note (transaction_id, receiver_id, merchant_id, env, moments, amount, amount_text, is_timed,
    is_of_till, created_at)
SELECT {literal("txn")}, receiver_id, merchant_id, 'sandbox', ARRAY[now()], 500, '500', true, false, now()
FROM merchant, receiver;
"""  # noqa: S608 - ids that the test chose

SECOND = f"""
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
SELECT {literal("run", 2)}, merchant_id, env, shortcode, 'manual', window_start, window_end, lease_until, started_at,
    receiver_id
FROM reconciliation_run
"""  # noqa: S608 - ids that the test chose
RUN = "UPDATE reconciliation_run SET %s"
NOTE = "UPDATE statement_note SET %s"

CASES = {
    "reconciliation_run_one_at_a_time": [SECOND],
    "reconciliation_run_check": [RUN % "window_start = window_end"],
    "reconciliation_run_check1": [RUN % "finished_at = now()"],
    "reconciliation_run_check2": [RUN % "lease_until = NULL"],
    "reconciliation_run_check3": [RUN % "error = 'Pull did not answer'"],
    "reconciliation_run_counts_check": [
        *(RUN % f"{count} = -1" for count in ("pages", "lines", "malformed", "recovered")),
        RUN % "lines = 1, recovered = 1, ambiguous = 1",
    ],
    "statement_note_amount_check": [NOTE % "amount = -1"],
    "statement_note_payment_where_found": [NOTE % "finding = 'recovered'"],
    "statement_note_dismissed_says_why": [
        NOTE % "dismissed_at = now()",
        NOTE % "dismissed_at = now(), dismissed_by = 'ann', dismissal_reason = ''",
    ],
    "statement_note_settled_with_its_payment": [NOTE % "settled_at = now()"],
    "statement_note_env_is_its_payments": [
        NOTE % "env = 'live', payment_id = (SELECT payment_id FROM payment), finding = 'recovered', settled_at = now()"
    ],
}


def test_constraints_each_have_a_violating_statement() -> None:
    assert set(CASES) >= added("mpesa_gateway_reconciliation.migrations")


async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    await harness.api.pay("254700000020", key="one")
    await harness.gateway.db.execute(ROWS)
    assert await refusals(harness.gateway.db, CASES) == {}
