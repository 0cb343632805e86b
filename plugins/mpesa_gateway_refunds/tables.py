"""The table of refunds, and the queries on it."""

from typing import Any

from piccolo.columns import Boolean, Integer, Text, Timestamptz
from piccolo.columns.combination import Where
from piccolo.table import Table

from mpesa_gateway.db.named import Named
from mpesa_gateway.env import Env


class RefundRow(Table, tablename="refund"):
    """A refund of a payment, or of a transaction that pays none."""

    refund_id = Text(primary_key=True)
    merchant_id = Text()
    payment_id = Text(null=True, default=None)
    transaction_id = Text(null=True, default=None)
    env = Text()
    shortcode_id = Text()
    shortcode = Text(null=True, default=None)
    amount = Integer()
    original_amount = Integer()
    receipt = Text()
    reason = Text()
    idempotency_key = Text(null=True, default=None)
    status = Text()
    reversal = Text()
    attempt = Integer()
    is_whole = Boolean()
    originator_conversation_id = Text(null=True, default=None)
    conversation_id = Text(null=True, default=None)
    reversal_receipt = Text(null=True, default=None)
    outcome = Text(null=True, default=None)
    advice = Text(null=True, default=None)
    result_code = Text(null=True, default=None)
    result_desc = Text(null=True, default=None)
    attention = Text(null=True, default=None)
    asked = Integer()
    due_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    updated_at = Timestamptz()
    completed_at = Timestamptz(null=True, default=None)


def pending(refund_id: str) -> tuple[Where, Where]:
    return RefundRow.refund_id == refund_id, RefundRow.status == "pending"


def waiting_of(env: Env, merchant_id: str | None = None) -> Any:
    """Count the refunds that need review."""
    found = RefundRow.count().where(RefundRow.attention.is_not_null(), RefundRow.env == env)
    return found if merchant_id is None else found.where(RefundRow.merchant_id == merchant_id)


# raw SQL: lock - a refund is locked before its payment or transaction.
# raw SQL: upsert - an unsent refund is requested again.
# raw SQL: expression - a result that came before the ack is kept.
# raw SQL: aggregate - limited per merchant, and counted for operators.

INSERT = Named("""
INSERT INTO refund (refund_id, merchant_id, payment_id, transaction_id, env, amount, original_amount, receipt, reason,
    idempotency_key, due_at, created_at, updated_at, shortcode, shortcode_id, is_whole, reversal)
VALUES ($refund_id, $merchant_id, $payment_id, $transaction_id, $env, $amount, $original_amount, $receipt, $reason,
    $idempotency_key, $due_at, $created_at, $created_at, $shortcode, $shortcode_id, $is_whole, 'ready')
ON CONFLICT (refund_id) DO UPDATE SET status = 'pending', reversal = 'ready', outcome = NULL, result_code = NULL,
    result_desc = NULL, advice = NULL, attention = NULL, receipt = excluded.receipt,
    amount = excluded.amount, shortcode = excluded.shortcode, due_at = excluded.due_at,
    updated_at = excluded.updated_at, is_whole = excluded.is_whole, attempt = refund.attempt + 1
    WHERE refund.reversal = 'unsent'
RETURNING *
""")

LOCK_WHOLE = """
SELECT * FROM refund WHERE merchant_id = $1 AND env = $2 AND payment_id = $3 AND is_whole AND status <> 'failed'
ORDER BY refund_id FOR UPDATE
"""

LOCK_WHOLE_OF_TRANSACTION = """
SELECT * FROM refund WHERE merchant_id = $1 AND env = $2 AND transaction_id = $3 AND is_whole AND status <> 'failed'
ORDER BY refund_id FOR UPDATE
"""

ACCEPTED = """
UPDATE refund SET reversal = CASE WHEN reversal IN ('sending', 'unknown') THEN 'accepted' ELSE reversal END,
    originator_conversation_id = NULLIF($2, ''), conversation_id = NULLIF($3, ''), updated_at = $4,
    due_at = CASE WHEN status = 'pending' THEN $5::timestamptz END
WHERE refund_id = $1 AND originator_conversation_id IS NULL AND conversation_id IS NULL
"""

LOCK = "SELECT * FROM refund WHERE refund_id = $1 FOR UPDATE"

LOCK_BY_HANDLE = """
SELECT * FROM refund WHERE originator_conversation_id = $1 OR conversation_id = $2
ORDER BY refund_id DESC LIMIT 1 FOR UPDATE
"""

ASK_AGAIN = """
UPDATE refund SET due_at = CASE WHEN attention IS NULL THEN $3::timestamptz END
WHERE refund_id = $1 AND status = 'pending' AND due_at = $2
"""

NEEDS_ATTENTION = """
UPDATE refund SET attention = $2, due_at = NULL, updated_at = $3
WHERE refund_id = $1 AND (status <> 'failed' OR attention IS DISTINCT FROM $2)
RETURNING refund_id
"""

DUE = """
SELECT refund_id, merchant_id FROM (
    SELECT refund_id, merchant_id, due_at, row_number() OVER (PARTITION BY merchant_id ORDER BY due_at) AS turn
    FROM refund WHERE due_at <= $1
) AS due
WHERE turn <= $3 ORDER BY turn, due_at LIMIT $2
"""

OF_CASE = """
SELECT * FROM refund
WHERE payment_id = ANY($1::uuid[]) OR transaction_id = ANY($1::uuid[]) OR refund_id = ANY($1::uuid[])
FOR UPDATE NOWAIT
"""

COUNT_OPEN = """
SELECT count(*) AS open, min(created_at) AS oldest
FROM (SELECT created_at FROM refund WHERE env = $1 AND due_at IS NOT NULL ORDER BY due_at LIMIT 10000) AS due
"""

OPEN_OF_SHORTCODES = """
SELECT shortcode_id, count(*) AS open FROM refund
WHERE (due_at IS NOT NULL OR attention IS NOT NULL) AND shortcode_id = ANY($1::uuid[])
GROUP BY shortcode_id
"""
"""Refunds with open queries or reviews. Served by refund_due and refund_attention."""
