"""Statements of allocations."""

from mpesa_gateway.db.named import Named

# raw SQL: array - each report with its receiver, and its transaction if recorded.
KNOWN = """
SELECT known.transaction_id, announce_at, announced_at, subject_id, conflict_id, amount_cents, occurred_at,
    account_number, payer, payer_digest, known.kind AS money_kind,
    known.refund_reserved_cents + known.refunded_cents > 0 OR known.reversed_outside IS NOT NULL AS is_refunded,
    known.first_source,
    (SELECT array_agg(source) FROM transaction_witness WHERE transaction_id = known.transaction_id AND detail IS NULL)
        AS witnesses,
    receiver.receiver_id, receiver.number, receiver.kind, receiver.owner_id
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS t(env, number, direction, receipt, place)
    LEFT JOIN transaction AS known ON known.env = t.env AND known.direction = t.direction AND known.receipt = t.receipt
    JOIN receiver ON receiver.env = t.env
        AND (CASE WHEN known.transaction_id IS NULL THEN receiver.number = t.number
            ELSE receiver.receiver_id = known.receiver_id END)
ORDER BY place
"""

# raw SQL: array - the transactions are locked, so the numbers are free. A repeated report allocates nothing anew.
NOTE = Named("""
INSERT INTO allocation (transaction_id, number, subject_kind, subject_id, by, at, note)
SELECT t.transaction_id, 1 + (SELECT count(*) FROM allocation AS former WHERE former.transaction_id = t.transaction_id),
    t.subject_kind, t.subject_id, t.by, $at::timestamptz, t.note
FROM unnest($transaction_id::uuid[], $subject_kind::text[], $subject_id::uuid[], $by::text[], $note::text[])
    AS t(transaction_id, subject_kind, subject_id, by, note)
WHERE NOT EXISTS (SELECT 1 FROM allocation AS former WHERE former.transaction_id = t.transaction_id
    AND former.subject_id = t.subject_id AND former.subject_kind = t.subject_kind)
ORDER BY t.transaction_id
RETURNING transaction_id
""")

# raw SQL: join
_WITH_RECEIVER = """
SELECT transaction.*, receiver.number, receiver.kind AS receiver_kind, receiver.owner_id
FROM transaction JOIN receiver USING (receiver_id)
"""

FIND = f"{_WITH_RECEIVER} WHERE transaction_id = $1"

FIND_ALL = f"{_WITH_RECEIVER} WHERE transaction_id = ANY($1::uuid[]) ORDER BY transaction_id"

OF_RECEIPT = f"""
{_WITH_RECEIVER} WHERE transaction.env = $1 AND direction IN ('in', 'out') AND receipt = $2 ORDER BY direction LIMIT 1
"""

# raw SQL: join
SHOWN_IN = """
SELECT subject_id, kind, first_source || ARRAY(SELECT source FROM transaction_witness AS witness
    WHERE witness.transaction_id = transaction.transaction_id AND detail IS NULL) AS sources
FROM transaction WHERE env = $1 AND direction = 'in' AND receipt = $2
"""

LOCK = f"{FIND} FOR UPDATE OF transaction"

# raw SQL: hot path - for each list of a shortcode.
RECEIVER = "SELECT receiver_id FROM receiver WHERE env = $1 AND number = $2"

# raw SQL: join
SHARED = """
SELECT DISTINCT receiver_id FROM receiver JOIN shortcode USING (receiver_id)
WHERE owner_id = $1 AND receiver.env = $2 AND shortcode.merchant_id <> $1
"""
"""A merchant's receivers that other merchants use."""

OFFERED = """
SELECT DISTINCT number FROM receiver JOIN shortcode USING (receiver_id)
WHERE shortcode.merchant_id = $1 AND receiver.env = $2 AND retired_at IS NULL ORDER BY number
"""
"""A merchant's active paybills and tills."""

ANNOUNCE = """
WITH due AS (
    SELECT transaction_id FROM transaction
    WHERE transaction_id = ANY($1::uuid[]) AND subject_id IS NULL AND conflict_id IS NULL AND announced_at IS NULL
        AND direction = 'in' AND refunded_cents = 0 AND reversed_outside IS NULL
    ORDER BY env, receipt FOR UPDATE
)
UPDATE transaction SET announce_at = NULL, announced_at = $2
FROM due, receiver
WHERE transaction.transaction_id = due.transaction_id AND receiver.receiver_id = transaction.receiver_id
RETURNING transaction.*, receiver.number, receiver.owner_id
"""

# raw SQL: join
ANNOUNCED = """
SELECT receipt, COALESCE(owner_id, merchant_id) AS merchant_id FROM transaction JOIN receiver USING (receiver_id, env)
WHERE env = $1 AND direction = 'in' AND receipt = ANY($2::text[]) AND announced_at IS NOT NULL
"""

# raw SQL: array
NUMBERS = "SELECT receiver_id, number FROM receiver WHERE receiver_id = ANY($1::uuid[])"

DUE = """
SELECT transaction_id FROM transaction WHERE announce_at <= $1 AND NOT (transaction_id = ANY($3::uuid[]))
ORDER BY announce_at LIMIT $2
"""
