"""Protects the invariants of runs and statement lines: each violation is reported."""

import pytest

from mpesa_gateway_reconciliation.plugin import plugin
from tests.conftest import Harness
from tests.identifiers import literal
from tests.ledger import drop_constraints, find_missed_corruptions

initiated = pytest.mark.usefixtures("initiated")

NOTE = """
INSERT INTO statement_note (transaction_id, receiver_id, merchant_id, moments, amount_text, is_timed, is_of_till,
    created_at, settled_at, env, amount, finding, payment_id)
SELECT transaction_id, receiver_id, merchant_id, ARRAY[now()], '', true, false, now(), now(), {values}
FROM (SELECT transaction_id, receiver_id, payment.* FROM payment JOIN transaction ON subject_id = payment_id) AS paid
WHERE idempotency_key = 'paid-{number}' RETURNING transaction_id
"""

VIOLATIONS = {
    "reconciliation.lines_fit_their_payments": ";".join(
        NOTE.format(number=number, values=values)
        for number, values in enumerate(
            (
                "env, amount + 1, 'already_known', payment_id",
                "env, amount, 'already_known', (SELECT payment_id FROM payment WHERE idempotency_key = 'paid-1')",
                "'live', amount, 'already_known', payment_id",
                "env, amount, 'mismatched', payment_id",
            ),
            1,
        )
    ),
    "reconciliation.runs_add_up": """
        UPDATE reconciliation_run SET already_known = already_known + 1 WHERE run_id = (
            SELECT run_id FROM reconciliation_run ORDER BY run_id LIMIT 1) RETURNING run_id;
        UPDATE reconciliation_line SET finding = 'new' WHERE (run_id, transaction_id) = (
            SELECT run_id, transaction_id FROM reconciliation_line ORDER BY run_id DESC, transaction_id LIMIT 1)
        RETURNING run_id
    """,
    "reconciliation.env_is_its_runs": """
        WITH moved AS (
            UPDATE reconciliation_run SET env = 'live'
            WHERE run_id = (SELECT run_id FROM reconciliation_run ORDER BY run_id LIMIT 1)
            RETURNING run_id
        )
        SELECT transaction_id FROM reconciliation_line JOIN moved USING (run_id)
    """,
    "reconciliation.runs_end": f"""
        INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end,
            lease_until, started_at, receiver_id)
        SELECT {literal("run")}, merchant_id, 'sandbox', '174379', 'cron', now() - interval '2 hours', now(),
            now() - interval '31 minutes', now(), receiver_id
        FROM merchant, receiver RETURNING run_id
    """,  # noqa: S608 - ids that the test chose
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"reconciliation.{invariant.name}" for invariant in plugin.invariants}


@initiated
async def test_invariants_report_each_violation_and_nothing_else(harness: Harness) -> None:
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    for number in range(1, 5):
        made = await harness.api.pay(f"25471100000{number}", 500 + number, key=f"paid-{number}")
        await harness.api.settled(made.data["id"], "completed")
    for _ in range(2):
        assert (await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["already_known"] == 4
    await drop_constraints(harness.gateway)
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS) == {}
