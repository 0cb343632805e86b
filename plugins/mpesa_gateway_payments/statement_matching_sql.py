"""Statements that match money to payments and record reversals outside the gateway."""

MOST_CANDIDATES = 1000
"""Beyond this number the rule decides nothing."""

# raw SQL: expression
REVERSED_OUTSIDE = """
UPDATE payment SET reversed_outside = $2, reviewed_at = NULL, updated_at = $3,
    refunded = CASE WHEN $2 = 'whole' THEN amount ELSE refunded END,
    status = CASE WHEN $2 = 'whole' THEN 'reversed' ELSE status END
WHERE payment_id = $1 AND status = 'completed' AND refunded = 0 AND refund_reserved = 0
    AND (reversed_outside IS NULL OR (reversed_outside = 'part' AND $2 = 'whole'))
RETURNING *
"""

# raw SQL: upsert
RECORD_REVERSED_RECEIPT = """
INSERT INTO outgoing_receipt (env, number, receipt, noted_at, is_part) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (env, receipt, number) DO UPDATE SET is_part = excluded.is_part
    WHERE outgoing_receipt.is_part
"""
"""A concurrent transaction may commit a payment with the receipt: PAID_BY_REVERSED_RECEIPT finds it afterwards."""

# raw SQL: join
PAID_BY_REVERSED_RECEIPT = """
SELECT payment.payment_id FROM outgoing_receipt AS gone
    JOIN payment ON payment.env = gone.env AND payment.receipt = gone.receipt AND payment.shortcode = gone.number
WHERE gone.noted_at >= $1
ORDER BY gone.noted_at LIMIT 100
"""

# raw SQL: join
LOOSE_REVERSED_RECEIPTS = """
SELECT gone.env, gone.number, gone.receipt, gone.is_part FROM outgoing_receipt AS gone
    JOIN transaction ON transaction.env = gone.env AND direction = 'in' AND transaction.receipt = gone.receipt
        AND subject_kind IS DISTINCT FROM 'payment'
    JOIN receiver ON receiver.receiver_id = transaction.receiver_id AND receiver.number = gone.number
WHERE gone.noted_at >= $1
ORDER BY gone.noted_at DESC LIMIT 100
"""

MONEY_IN = """
SELECT receipt, amount_cents FROM transaction JOIN receiver USING (receiver_id, env)
WHERE env = $1 AND direction = 'in' AND receipt = ANY($2::text[]) AND number = $3
"""

_FACTS = """payment_id, merchant_id, env, shortcode, amount, phone, erased_at, reference, reference_is_ours, created_at,
    status, failure_reason, outcome_is_final, receipt, received_receipt, checkout_request_id, mismatch, charge,
    claim"""

# raw SQL: hot path - compared with each report of money.
NAMED = f"""
SELECT {_FACTS} FROM payment WHERE env = $1 AND receipt = ANY($2::text[])
UNION ALL
SELECT {_FACTS} FROM payment WHERE env = $1 AND received_receipt = ANY($2::text[])
UNION ALL
SELECT {_FACTS} FROM payment WHERE reference_is_ours AND reference = ANY($3::text[]) AND env = $1
"""
"""Payments of all merchants with one of these receipts or own references."""

CANDIDATES = f"""
SELECT found.* FROM (
    SELECT * FROM unnest($2::text[], $3::integer[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
        AS t(number, value, since, likely, until)
    LIMIT cardinality($2)
) AS wanted CROSS JOIN LATERAL (
    SELECT {_FACTS} FROM payment
    WHERE env = $1 AND shortcode = wanted.number AND amount = wanted.value AND receipt IS NULL
        AND status IN ('pending', 'failed', 'completed') AND erased_at IS NULL
        AND created_at BETWEEN wanted.since AND wanted.until
    ORDER BY (created_at >= wanted.likely) DESC, created_at DESC LIMIT {MOST_CANDIDATES}
) AS found
"""
"""Payments without a receipt at these receivers, of all merchants; candidates of the rule come first."""

# raw SQL: array
RECEIPTS_KNOWN = """
SELECT receipt FROM payment WHERE env = $1 AND receipt = ANY($2::text[])
"""

PAID_AT = """
SELECT payment_id FROM payment WHERE env = $1 AND receipt = ANY($3::text[]) AND shortcode = $2
ORDER BY payment_id LIMIT 1
"""

# raw SQL: join
KNOWN_RECEIPTS = """
SELECT receipt, number, true AS pays_nothing, false AS is_allocated, NULL AS reference FROM outgoing_receipt
WHERE env = $1 AND receipt = ANY($2::text[]) AND NOT is_part
UNION ALL
SELECT receipt, number, true, false, NULL FROM transaction JOIN receiver USING (receiver_id)
WHERE transaction.env = $1 AND direction = 'out' AND receipt = ANY($2::text[]) AND subject_id IS NOT NULL
UNION ALL
SELECT receipt, number, refund_reserved_cents + refunded_cents > 0 OR reversed_outside IS NOT NULL,
    subject_kind IS NOT NULL AND subject_kind IS DISTINCT FROM 'payment', account_number
FROM transaction JOIN receiver USING (receiver_id)
WHERE transaction.env = $1 AND direction = 'in' AND receipt = ANY($2::text[])
"""
"""Facts about receipts at their receivers.

``pays_nothing``: the money was reversed in full, returned by our refund, or refunded without a payment.
"""
