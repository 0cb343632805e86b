"""Protects the constraints of the refunds' table: each has a statement that violates it."""

import pytest

from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

pytestmark = pytest.mark.as_owner

ROWS = f"""
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, receipt, expires_at, created_at, updated_at, completed_at,
    refund_reserved)
SELECT {literal("pay")}, merchant_id, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), 500, 'KES', '254711000001', 'ROW', false,
    'Payment', 'k', 'completed', 'TKN4A1B2C3', now(), now(), now(), now(), 100
FROM merchant;
INSERT INTO refund (refund_id, merchant_id, payment_id, env, amount, original_amount, receipt, status, reversal,
    outcome, due_at, completed_at, created_at, updated_at, shortcode_id)
SELECT refund_id, merchant_id, {literal("pay")}, 'sandbox', 100, 500, 'TKN4A1B2C3', status, reversal, outcome,
    CASE WHEN status = 'pending' THEN now() END, CASE WHEN status = 'completed' THEN now() END, now(), now(),
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1)
FROM merchant, (VALUES ({literal("rfd", 1)}::uuid, 'pending', 'accepted', NULL),
    ({literal("rfd", 2)}, 'completed', 'ended', 'reversed'), ({literal("rfd", 3)}, 'failed', 'ended', 'other'))
    AS given(refund_id, status, reversal, outcome);
"""  # noqa: S608 - ids that the test chose

UPDATE = "UPDATE refund SET %s WHERE status = '%s'"
ANOTHER = f"""
INSERT INTO refund (refund_id, merchant_id, payment_id, env, amount, original_amount, receipt, status, reversal,
    outcome, completed_at, created_at, updated_at, shortcode_id, reversal_receipt)
SELECT another, merchant_id, payment_id, %s, amount, original_amount, receipt, status, reversal, outcome,
    completed_at, created_at, updated_at, shortcode_id, 'SKE0000001'
FROM refund, (VALUES ({literal("rfd", 4)}::uuid), ({literal("rfd", 5)})) AS given(another)
WHERE status = 'completed'
"""  # noqa: S608 - ids that the test chose
TRANSACTION = f"""
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, amount_cents, occurred_at,
    first_source)
SELECT {literal("txn")}, merchant_id, 'sandbox', receiver_id, 'in', 'TKN4A1B2C3', 50000, now(), 'pull'
FROM merchant, receiver LIMIT 1;
"""  # noqa: S608 - ids that the test chose
OF_TRANSACTION = f"""
{TRANSACTION}
INSERT INTO refund (refund_id, merchant_id, transaction_id, env, amount, original_amount, receipt, due_at, created_at,
    updated_at, shortcode_id, is_whole)
SELECT CASE given.number WHEN 1 THEN {literal("rfd", 4)}::uuid ELSE {literal("rfd", 5)} END, merchant_id,
    {literal("txn")}, %s, amount, original_amount, receipt, now(), now(), now(), shortcode_id, true
FROM refund, (%s) AS given(number) WHERE status = 'failed'
"""  # noqa: S608 - ids that the test chose
OF_BOTH = f"{TRANSACTION} UPDATE refund SET transaction_id = {literal('txn')}"  # noqa: S608 - the same reason
AGAIN = "status = 'pending', reversal = 'sending', outcome = NULL, completed_at = NULL, due_at = now()"

CASES = {
    "refund_asked_check": [UPDATE % ("asked = -1", "pending")],
    "refund_has_one_source": [UPDATE % ("payment_id = NULL", "failed"), OF_BOTH],
    "refund_whole_of_transaction": [OF_TRANSACTION % ("env", "SELECT 1 UNION ALL SELECT 2")],
    "refund_env_is_its_transactions": [OF_TRANSACTION % ("'live'", "SELECT 1")],
    "refund_check": [UPDATE % ("amount = 501", "pending")],
    "refund_check1": [UPDATE % ("completed_at = NULL", "completed"), UPDATE % ("completed_at = now()", "failed")],
    "refund_check2": [UPDATE % ("outcome = 'other'", "pending"), UPDATE % ("outcome = NULL", "failed")],
    "refund_check3": [UPDATE % ("due_at = now()", "completed"), UPDATE % ("due_at = now()", "failed")],
    "refund_check4": [UPDATE % ("due_at = NULL", "pending")],
    "refund_reversal_receipt": [ANOTHER % "env"],
    "refund_idempotency_key": ["UPDATE refund SET idempotency_key = 'k'"],
    "refund_whole": ["UPDATE refund SET is_whole = true"],
    "refund_env_is_its_payments": [ANOTHER.replace("'SKE0000001'", "NULL") % "'live'"],
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
        UPDATE % ("original_amount = 501", "pending"),
        UPDATE % (f"refund_id = {literal('rfd', 4)}", "pending"),
        UPDATE % ("env = 'live'", "pending"),
        f"{TRANSACTION} UPDATE refund SET payment_id = NULL, transaction_id = {literal('txn')}",  # noqa: S608 - the same
    ],
    "refund_not_deleted": ["DELETE FROM refund"],
    "refund_never_emptied": ["TRUNCATE refund"],
}


def test_constraints_each_have_a_violating_statement() -> None:
    assert set(CASES) >= added("mpesa_gateway_refunds.migrations")


async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    await harness.gateway.db.execute(ROWS)
    assert await refusals(harness.gateway.db, CASES) == {}


async def test_attention_of_an_ended_refund_is_allowed(harness: Harness) -> None:
    await harness.gateway.db.execute(ROWS)
    assert await harness.gateway.db.execute("UPDATE refund SET attention = 'look'") == "UPDATE 3"


async def test_unsent_refund_repeated_with_another_amount_is_allowed(harness: Harness) -> None:
    await harness.gateway.db.execute(ROWS)
    await harness.gateway.db.execute("UPDATE refund SET reversal = 'unsent' WHERE status = 'failed'")
    assert await harness.gateway.db.execute(UPDATE % (AGAIN + ", amount = 50", "failed")) == "UPDATE 1"


async def test_failed_refund_completed_later_is_allowed(harness: Harness) -> None:
    await harness.gateway.db.execute(ROWS)
    went_back = "status = 'completed', outcome = 'reversed', completed_at = now()"
    assert await harness.gateway.db.execute(UPDATE % (went_back, "failed")) == "UPDATE 1"
