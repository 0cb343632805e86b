"""Runs and statement lines, bent past Postgres' own rules: it shows."""

import pytest

from mpesa_gateway_reconciliation.plugin import plugin
from tests.conftest import Town
from tests.identifiers import literal
from tests.ledger import each_is_noticed, lay_bare

initiated = pytest.mark.usefixtures("initiated")

BENDINGS = {
    "reconciliation.lines_fit_their_payments": """
        UPDATE statement_line SET amount = statement_line.amount + 1 FROM payment
        WHERE payment.payment_id = statement_line.payment_id AND idempotency_key = 'paid-1' RETURNING line_id;
        UPDATE statement_line SET receipt = 'TKN4A1B2C3' FROM payment
        WHERE payment.payment_id = statement_line.payment_id AND idempotency_key = 'paid-2' RETURNING line_id;
        UPDATE statement_line SET env = 'live' FROM payment
        WHERE payment.payment_id = statement_line.payment_id AND idempotency_key = 'paid-3' RETURNING line_id;
        UPDATE statement_line SET finding = 'mismatched' FROM payment
        WHERE payment.payment_id = statement_line.payment_id AND idempotency_key = 'paid-4' RETURNING line_id
    """,
    "reconciliation.runs_add_up": """
        UPDATE reconciliation_run SET already_known = already_known + 1 WHERE run_id = (
            SELECT run_id FROM reconciliation_run ORDER BY run_id LIMIT 1) RETURNING run_id;
        UPDATE reconciliation_line SET finding = 'new' WHERE (run_id, line_id) = (
            SELECT run_id, line_id FROM reconciliation_line ORDER BY run_id DESC, line_id LIMIT 1) RETURNING run_id
    """,
    "reconciliation.env_is_its_runs": """
        WITH moved AS (
            UPDATE reconciliation_run SET env = 'live'
            WHERE run_id = (SELECT run_id FROM reconciliation_run ORDER BY run_id LIMIT 1)
            RETURNING run_id
        )
        SELECT line_id FROM reconciliation_line JOIN moved USING (run_id) JOIN statement_line USING (line_id)
        WHERE statement_line.env = 'sandbox'
    """,
    "reconciliation.runs_end": f"""
        INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end,
            lease_until, started_at, receiver_id)
        SELECT {literal("run")}, merchant_id, 'sandbox', '174379', 'cron', now() - interval '2 hours', now(),
            now() - interval '31 minutes', now(), receiver_id
        FROM merchant, receiver RETURNING run_id
    """,  # noqa: S608 - ids that the test chose
}


def test_every_invariant_is_bent() -> None:
    assert set(BENDINGS) == {f"reconciliation.{invariant.name}" for invariant in plugin.invariants}


@initiated
async def test_whatever_is_bent_shows_and_nothing_else_does(town: Town) -> None:
    await town.api.call("POST", "/v1/payments/mpesa/pull/register")
    for number in range(1, 5):
        made = await town.api.pay(f"25471100000{number}", 500 + number, key=f"paid-{number}")
        await town.api.settled(made.data["id"], "completed")
    for _ in range(2):
        assert (await town.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["already_known"] == 4
    await lay_bare(town.gateway)
    also = {"reconciliation.lines_fit_their_payments": "reconciliation.env_is_its_runs"}
    assert await each_is_noticed(town.gateway, BENDINGS, also) == {}
