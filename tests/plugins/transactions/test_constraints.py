"""Protects the constraints of the transactions' tables: each has a statement that violates it."""

import pytest

from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

ROWS = f"""
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, amount_cents, occurred_at,
    first_source, subject_kind, subject_id)
SELECT {literal("txn", 1)}, merchant_id, 'sandbox', receiver_id, 'in', 'TKN4A1B2C3', 50000, now(), 'stk', 'payment',
    {literal("pay", 1)}
FROM merchant, receiver;
"""  # noqa: S608 - ids that the test chose

SECOND = f"""
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, occurred_at, first_source,
    subject_kind, subject_id)
SELECT {literal("txn", 2)}, merchant_id, env, receiver_id, 'in', %s, now(), 'pull', %s FROM transaction
"""  # noqa: S608 - ids that the test chose
LOOSE = f"""
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, amount_cents, occurred_at,
    first_source)
SELECT {literal("txn", 2)}, merchant_id, env, receiver_id, 'in', 'TKN0000002', 50000, now(), 'pull' FROM transaction;
UPDATE transaction SET %s WHERE transaction_id = {literal("txn", 2)};
UPDATE transaction SET (subject_kind, subject_id) = (%s) WHERE transaction_id = {literal("txn", 2)}
"""  # noqa: S608 - ids that the test chose
CHANGE = "UPDATE transaction SET %s"
WITNESS = f"""
INSERT INTO transaction_witness (transaction_id, source, seen_at, detail, reviewed_at, reviewed_by, review_note)
VALUES ({literal("txn", 1)}, 'pull', now(), %s)
"""  # noqa: S608 - ids that the test chose

ALLOCATION = f"""
INSERT INTO allocation (transaction_id, number, subject_kind, subject_id, by, at)
VALUES ({literal("txn", 1)}, 1, 'payment', {literal("pay", 1)}, 'a person', now());
%s
"""  # noqa: S608 - ids that the test chose

CASES = {
    "allocation_append_only": [
        ALLOCATION % "UPDATE allocation SET by = 'another'",
        ALLOCATION % "DELETE FROM allocation",
    ],
    "allocation_never_emptied": [ALLOCATION % "TRUNCATE allocation"],
    "transaction_refunds_fit": [LOOSE.rpartition(";")[0] % "refund_reserved_cents = 30000, refunded_cents = 20001"],
    "transaction_payments_refund_themselves": [
        CHANGE % "refunded_cents = 1",
        SECOND % ("'TKN0000002'", "NULL, NULL") + "; UPDATE transaction SET direction = 'out', refunded_cents = 1",
    ],
    "transaction_refunded_is_not_allocated": [
        LOOSE % ("refund_reserved_cents = 100", f"'resolved', {literal('txn', 2)}"),
        LOOSE % ("refunded_cents = 100", f"'account_number', {literal('acc', 1)}"),
    ],
    "transaction_reversed_outside_is_money_in": [
        CHANGE % "reversed_outside = 'part'",
        LOOSE.rpartition(";")[0] % "reversed_outside = 'whole', refunded_cents = 100",
    ],
    "transaction_returns_money_in": [SECOND % ("'TKN0000002'", f"'transaction', {literal('txn', 1)}")],
    "transaction_resolved_is_its_own_subject": [
        SECOND % ("'TKN0000002'", f"'resolved', {literal('txn', 3)}"),
    ],
    "transaction_announced_once": [CHANGE % "announce_at = now(), announced_at = now()"],
    "transaction_receipt": [SECOND % ("receipt", "NULL, NULL")],
    "transaction_subject": [SECOND % ("'TKN0000002'", "subject_kind, subject_id")],
    "transaction_subject_is_whole": [
        SECOND % ("'TKN0000002'", f"NULL, {literal('pay', 2)}"),
        SECOND % ("'TKN0000002'", "'payment', NULL"),
    ],
    "transaction_is_set_once": [
        CHANGE % change
        for change in ("receipt = 'TKN0000002'", "direction = 'out'", "occurred_at = now() - interval '1 day'")
    ],
    "transaction_has_one_subject": [
        CHANGE % change for change in ("amount_cents = 1", "subject_kind = NULL, subject_id = NULL")
    ],
    "transaction_witness_review_is_whole": [WITNESS % "'reports 1 cent', now(), 'a person', NULL"],
    "transaction_witness_review_is_of_a_difference": [WITNESS % "NULL, now(), 'a person', 'compared'"],
    "transaction_not_deleted": ["DELETE FROM transaction"],
}


def test_constraints_each_have_a_violating_statement() -> None:
    assert set(CASES) == added("mpesa_gateway_transactions.migrations")


@pytest.mark.as_owner
async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    await harness.api.pay("254700000020", key="one")
    await harness.gateway.db.execute(ROWS)
    assert await refusals(harness.gateway.db, CASES) == {}
