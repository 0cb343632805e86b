"""Refunds as Piccolo knows them, and the named queries on them; the migrations say the rest."""

from piccolo.columns import Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.named import Named


class RefundRow(Table, tablename="refund"):
    """Money that a merchant sends back."""

    refund_id = Text(primary_key=True)
    merchant_id = Text()
    payment_id = Text()
    env = Text()
    shortcode_id = Text()
    shortcode = Text(null=True, default=None)
    amount = Integer()
    payment_amount = Integer()
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


INSERT = Named("""
INSERT INTO refund (refund_id, merchant_id, payment_id, env, amount, payment_amount, receipt, reason, idempotency_key,
    due_at, created_at, updated_at, shortcode, shortcode_id, is_whole, reversal)
VALUES ($refund_id, $merchant_id, $payment_id, $env, $amount, $payment_amount, $receipt, $reason, $idempotency_key,
    $due_at, $created_at, $created_at, $shortcode, $shortcode_id, $is_whole, 'ready')
ON CONFLICT (refund_id) DO UPDATE SET status = 'pending', reversal = 'ready', outcome = NULL, result_code = NULL,
    result_desc = NULL, advice = NULL, attention = NULL, receipt = excluded.receipt,
    amount = excluded.amount, shortcode = excluded.shortcode, due_at = excluded.due_at,
    updated_at = excluded.updated_at, is_whole = excluded.is_whole, attempt = refund.attempt + 1
    WHERE refund.reversal = 'unsent'
RETURNING *
""")

SENDING = """
UPDATE refund SET reversal = 'sending' WHERE refund_id = $1 AND attempt = $2 AND reversal = 'ready'
RETURNING refund_id
"""
"""Committed before the call: what is still ``ready`` was never sent."""

LOCK_WHOLE = """
SELECT * FROM refund WHERE merchant_id = $1 AND env = $2 AND payment_id = $3 AND is_whole AND status <> 'failed'
ORDER BY refund_id FOR UPDATE
"""

FIND_WHOLE = """
SELECT refund_id FROM refund WHERE merchant_id = $1 AND env = $2 AND payment_id = $3 AND is_whole AND status <> 'failed'
"""

HAS_WHOLE = "SELECT EXISTS (SELECT 1 FROM refund WHERE payment_id = $1 AND is_whole AND status <> 'failed')"

ACCEPTED = """
UPDATE refund SET reversal = CASE WHEN reversal IN ('sending', 'unknown') THEN 'accepted' ELSE reversal END,
    originator_conversation_id = NULLIF($2, ''), conversation_id = NULLIF($3, ''), updated_at = $4,
    due_at = CASE WHEN status = 'pending' THEN $5::timestamptz END
WHERE refund_id = $1 AND originator_conversation_id IS NULL AND conversation_id IS NULL
"""

UNKNOWN = """
UPDATE refund SET reversal = 'unknown', result_desc = $2, updated_at = $3, due_at = $4
WHERE refund_id = $1 AND reversal = 'sending' AND status = 'pending'
"""

LOCK = "SELECT * FROM refund WHERE refund_id = $1 FOR UPDATE"

MAY_HAVE_GONE_BACK_IN_PART = """
SELECT EXISTS (
    SELECT 1 FROM refund WHERE payment_id = $1 AND refund_id <> $2 AND amount < payment_amount
        AND reversal NOT IN ('unsent', 'refused')
)
"""

LOCK_BY_HANDLE = """
SELECT * FROM refund WHERE originator_conversation_id = $1 OR conversation_id = $2
ORDER BY created_at DESC LIMIT 1 FOR UPDATE
"""

COMPLETE = """
UPDATE refund SET status = 'completed', reversal = 'ended', outcome = $2, result_code = $3, result_desc = $4,
    reversal_receipt = $5, advice = NULL, attention = NULL, due_at = NULL, updated_at = $6, completed_at = $6
WHERE refund_id = $1 AND status <> 'completed'
RETURNING *
"""

FAIL = """
UPDATE refund SET status = 'failed', reversal = $5, outcome = $2, result_code = $3, result_desc = $4,
    advice = $7, attention = NULL, due_at = NULL, updated_at = $6
WHERE refund_id = $1 AND status = 'pending'
RETURNING *
"""

VERIFY = """
UPDATE refund SET reversal = 'verifying', result_code = $2, result_desc = $3, asked = 0, due_at = $4,
    attention = NULL, updated_at = $4
WHERE refund_id = $1 AND status = 'pending'
"""

ASK_NOW = "UPDATE refund SET due_at = $2 WHERE refund_id = $1 AND status = 'pending' AND attention IS NULL"

ASK_BY_HAND = "UPDATE refund SET due_at = $2 WHERE refund_id = $1 AND status = 'pending'"

ASK_AGAIN = """
UPDATE refund SET due_at = CASE WHEN attention IS NULL THEN $3::timestamptz END
WHERE refund_id = $1 AND status = 'pending' AND due_at = $2
"""

NEEDS_ATTENTION = """
UPDATE refund SET attention = $2, due_at = NULL, updated_at = $3
WHERE refund_id = $1 AND (status <> 'failed' OR attention IS DISTINCT FROM $2)
RETURNING refund_id
"""

LOOKED_AT = "UPDATE refund SET attention = NULL, updated_at = $2 WHERE refund_id = $1"

DUE = """
SELECT refund_id, merchant_id FROM (
    SELECT refund_id, merchant_id, due_at, row_number() OVER (PARTITION BY merchant_id ORDER BY due_at) AS turn
    FROM refund WHERE due_at <= $1
) AS due
WHERE turn <= $3 ORDER BY turn, due_at LIMIT $2
"""

CLAIM_DUE = """
UPDATE refund SET asked = asked + 1, due_at = $3 WHERE refund_id = $1 AND status = 'pending' AND due_at <= $2
RETURNING *
"""

OF_CASE = """
SELECT * FROM refund WHERE payment_id = ANY($1::text[]) OR refund_id = ANY($1::text[]) FOR UPDATE NOWAIT
"""

ERASE = "UPDATE refund SET reason = $2, result_desc = $3 WHERE refund_id = $1"

FIND_BY_KEY = "SELECT * FROM refund WHERE merchant_id = $1 AND env = $2 AND idempotency_key = $3"

FIND = "SELECT * FROM refund WHERE merchant_id = $1 AND env = $2 AND refund_id = $3"

FIND_ANY = "SELECT * FROM refund WHERE refund_id = $1"

OF_PAYMENT = "SELECT * FROM refund WHERE payment_id = $1 ORDER BY created_at DESC LIMIT 100"

COUNT_OPEN = """
SELECT count(*) AS open, min(created_at) AS oldest
FROM (SELECT created_at FROM refund WHERE env = $1 AND due_at IS NOT NULL ORDER BY due_at LIMIT 10000) AS due
"""

OPEN_OF_SHORTCODES = """
SELECT shortcode_id, count(*) AS open FROM refund
WHERE (due_at IS NOT NULL OR attention IS NOT NULL) AND shortcode_id = ANY($1::text[])
GROUP BY shortcode_id
"""
"""Refunds that are asked about, or wait for a person. Served by refund_due and refund_attention."""

COUNT_WAITING = "SELECT count(*) FROM refund WHERE attention IS NOT NULL AND env = ANY($1::text[])"

PAGE = """
SELECT * FROM refund WHERE merchant_id = $1 AND env = $2 AND ($3::text IS NULL OR payment_id = $3)
    AND ($4::text IS NULL OR status = $4) AND ($5::timestamptz IS NULL OR created_at >= $5)
    AND ($6::timestamptz IS NULL OR created_at < $6) AND ($7::boolean IS NULL OR (attention IS NOT NULL) = $7)
    AND ($8::timestamptz IS NULL OR (created_at, refund_id) < ($8, $9))
ORDER BY created_at DESC, refund_id DESC LIMIT $10
"""

COUNT = """
SELECT count(*) FROM refund WHERE merchant_id = $1 AND env = $2 AND ($3::text IS NULL OR payment_id = $3)
    AND ($4::text IS NULL OR status = $4) AND ($5::timestamptz IS NULL OR created_at >= $5)
    AND ($6::timestamptz IS NULL OR created_at < $6) AND ($7::boolean IS NULL OR (attention IS NOT NULL) = $7)
"""

NEEDING_ATTENTION = """
SELECT count(*) FROM refund WHERE merchant_id = $1 AND env = $2 AND status = 'pending' AND attention IS NOT NULL
"""
