"""What the tables of reconciliation refuse, whoever asks: each rule has a statement that breaks it."""

from tests.conftest import Town
from tests.constraints import added, refusals
from tests.identifiers import literal

ROWS = f"""
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
SELECT {literal("run", 1)}, merchant_id, 'sandbox', '174379', 'cron', now() - interval '2 hours', now(), now(), now(),
    receiver_id
FROM merchant, receiver;
INSERT INTO statement_line (line_id, merchant_id, env, shortcode, receipt, moments, amount, amount_text, created_at)
SELECT {literal("lin")}, merchant_id, 'sandbox', '174379', 'TKN4A1B2C3', ARRAY[now()], 500, '500', now() FROM merchant;
"""  # noqa: S608 - ids that the test chose

SECOND = f"""
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
SELECT {literal("run", 2)}, merchant_id, env, shortcode, 'manual', window_start, window_end, lease_until, started_at,
    receiver_id
FROM reconciliation_run
"""  # noqa: S608 - ids that the test chose
RUN = "UPDATE reconciliation_run SET %s"
LINE = "UPDATE statement_line SET %s"

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
    "statement_line_receipt_check": [LINE % "receipt = ''"],
    "statement_line_amount_check": [LINE % "amount = -1"],
    "statement_line_check": [LINE % "finding = 'recovered'"],
    "statement_line_set_aside_says_why": [
        LINE % "set_aside_at = now()",
        LINE % "set_aside_at = now(), set_aside_by = 'ann', set_aside_reason = ''",
    ],
    "statement_line_settled_with_its_payment": [LINE % "settled_at = now()"],
    "statement_line_env_is_its_payments": [
        LINE % "env = 'live', payment_id = (SELECT payment_id FROM payment), finding = 'recovered', settled_at = now()"
    ],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    assert set(CASES) >= added("mpesa_gateway_reconciliation.migrations")


async def test_the_tables_refuse_what_must_not_be(town: Town) -> None:
    await town.api.pay("254700000020", key="one")
    await town.gateway.db.execute(ROWS)
    assert await refusals(town.gateway.db, CASES) == {}
