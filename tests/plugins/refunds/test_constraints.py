"""What the table of refunds refuses, whoever asks: each rule has a statement that breaks it."""

import pytest

from tests.conftest import Town
from tests.constraints import added, refusals

pytestmark = pytest.mark.as_owner

ROWS = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, receipt, expires_at, created_at, updated_at, completed_at,
    refund_reserved)
SELECT 'pay_1', merchant_id, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), 500, 'KES', '254711000001', 'ROW', false, 'Payment', 'k',
    'completed', 'TKN4A1B2C3', now(), now(), now(), now(), 100
FROM merchant;
INSERT INTO refund (refund_id, merchant_id, payment_id, env, amount, payment_amount, receipt, status, reversal, outcome,
    due_at, completed_at, created_at, updated_at, shortcode_id)
SELECT 'rfd_' || status, merchant_id, 'pay_1', 'sandbox', 100, 500, 'TKN4A1B2C3', status, reversal, outcome,
    CASE WHEN status = 'pending' THEN now() END, CASE WHEN status = 'completed' THEN now() END, now(), now(),
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1)
FROM merchant, (VALUES ('pending', 'accepted', NULL), ('completed', 'ended', 'reversed'), ('failed', 'ended', 'other'))
    AS given(status, reversal, outcome);
"""

UPDATE = "UPDATE refund SET %s WHERE status = '%s'"
AGAIN = "status = 'pending', reversal = 'sending', outcome = NULL, completed_at = NULL, due_at = now()"

CASES = {
    "refund_asked_check": [UPDATE % ("asked = -1", "pending")],
    "refund_receipt_check": [
        UPDATE % ("receipt = ''", "pending"),
        UPDATE % ("reversal_receipt = 'not a receipt'", "completed"),
    ],
    "refund_reversal_fits_status": [
        UPDATE % ("reversal = 'ended'", "pending"),
        UPDATE % ("reversal = 'accepted'", "completed"),
        UPDATE % ("reversal = 'sending'", "failed"),
    ],
    "refund_outcome_fits_status": [
        UPDATE % ("outcome = 'other'", "completed"),
        UPDATE % ("outcome = 'reversed'", "failed"),
        UPDATE % ("outcome = 'already_reversed'", "failed"),
    ],
    "refund_reversal_receipt_is_of_money": [
        UPDATE % ("reversal_receipt = 'SKE0000001'", "pending"),
        UPDATE % ("reversal_receipt = 'SKE0000001'", "failed"),
    ],
    "refund_moves": [
        UPDATE % (AGAIN, "completed"),
        UPDATE % (AGAIN, "failed"),
        UPDATE % ("status = 'failed', outcome = 'other', completed_at = NULL", "completed"),
    ],
    "refund_asks_for_the_same": [
        UPDATE % ("amount = 99", "pending"),
        UPDATE % ("amount = 99", "failed"),
        UPDATE % ("payment_amount = 501", "pending"),
        UPDATE % ("refund_id = 'rfd_x'", "pending"),
        UPDATE % ("env = 'live'", "pending"),
    ],
    "refund_not_deleted": ["DELETE FROM refund"],
    "refund_never_emptied": ["TRUNCATE refund"],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    taken_back = {"refund_attention_while_pending"}
    assert set(CASES) == added("mpesa_gateway_refunds.migrations", "0002_what_always_holds.sql") - taken_back


async def test_the_table_refuses_what_must_not_be(town: Town) -> None:
    await town.gateway.db.execute(ROWS)
    assert await refusals(town.gateway.db, CASES) == {}


async def test_somebody_may_have_to_look_at_what_has_ended(town: Town) -> None:
    await town.gateway.db.execute(ROWS)
    assert await town.gateway.db.execute("UPDATE refund SET attention = 'look'") == "UPDATE 3"


async def test_what_was_never_sent_may_be_asked_for_again_with_another_amount(town: Town) -> None:
    await town.gateway.db.execute(ROWS)
    await town.gateway.db.execute("UPDATE refund SET reversal = 'unsent' WHERE status = 'failed'")
    assert await town.gateway.db.execute(UPDATE % (AGAIN + ", amount = 50", "failed")) == "UPDATE 1"


async def test_one_that_was_given_up_may_turn_out_to_have_gone_through(town: Town) -> None:
    await town.gateway.db.execute(ROWS)
    went_back = "status = 'completed', outcome = 'reversed', completed_at = now()"
    assert await town.gateway.db.execute(UPDATE % (went_back, "failed")) == "UPDATE 1"
