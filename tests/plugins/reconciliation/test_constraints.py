"""What the tables of reconciliation refuse, whoever asks: each rule has a statement that breaks it."""

from tests.conftest import Town
from tests.constraints import added, refusals

ROWS = """
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
SELECT 'run_00000000000000000000000001', merchant_id, 'sandbox', '174379', 'cron', now() - interval '2 hours', now(),
    now(), now(), receiver_id
FROM merchant, receiver;
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, occurred_at, first_source)
SELECT 'txn_00000000000000000000000001', merchant_id, 'sandbox', receiver_id, 'in', 'TKN4A1B2C3', now(), 'pull'
FROM merchant, receiver;
INSERT INTO statement_note (transaction_id, merchant_id, env, moments, amount, amount_text, is_timed, is_of_till,
    created_at)
SELECT 'txn_00000000000000000000000001', merchant_id, 'sandbox', ARRAY[now()], 500, '500', true, false, now()
FROM merchant;
"""

SECOND = """
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
SELECT 'run_00000000000000000000000002', merchant_id, env, shortcode, 'manual', window_start, window_end, lease_until,
    started_at, receiver_id
FROM reconciliation_run
"""
RUN = "UPDATE reconciliation_run SET %s"
NOTE = "UPDATE statement_note SET %s"

CASES = {
    "reconciliation_run_one_at_a_time": [SECOND],
    "reconciliation_run_counts_check": [
        *(RUN % f"{count} = -1" for count in ("pages", "lines", "malformed", "recovered")),
        RUN % "lines = 1, recovered = 1, ambiguous = 1",
    ],
    "statement_note_amount_check": [NOTE % "amount = -1"],
    "statement_note_settled_with_its_payment": [NOTE % "settled_at = now()"],
    "statement_note_payment_where_found": [NOTE % "finding = 'recovered'"],
    "statement_note_set_aside_says_why": [NOTE % "set_aside_at = now()"],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    new = added("mpesa_gateway_reconciliation.migrations", "0002_what_always_holds.sql")
    # The table of lines is gone.
    assert {name for name in new if not name.startswith("statement_line")} <= set(CASES)


async def test_the_tables_refuse_what_must_not_be(town: Town) -> None:
    await town.gateway.db.execute(ROWS)
    assert await refusals(town.gateway.db, CASES) == {}
