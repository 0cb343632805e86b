"""Statements on status queries that Piccolo's builder cannot express."""

# raw SQL: lock - one result at a time ends a check, and several workers delete old checks.
# raw SQL: expression - a result that arrived before its acknowledgement keeps its state.

STORE_ACKNOWLEDGEMENT = """
UPDATE status_check SET state = CASE WHEN state = 'sending' THEN 'asked' ELSE state END,
    originator_conversation_id = NULLIF($2, ''), conversation_id = NULLIF($3, '')
WHERE check_id = $1 AND originator_conversation_id IS NULL AND conversation_id IS NULL
RETURNING check_id
"""

LOCK_CHECK = "SELECT * FROM status_check WHERE check_id = $1 FOR UPDATE"

LOCK_CHECK_BY_HANDLE = """
SELECT * FROM status_check WHERE originator_conversation_id = $1 OR ($1::text IS NULL AND conversation_id = $2)
ORDER BY check_id DESC LIMIT 1 FOR UPDATE
"""

_UNDECIDED = """finding = 'ambiguous' AND reviewed_at IS NULL
    AND (SELECT payment_id FROM payment
        WHERE payment.env = asked.env AND payment.receipt = COALESCE(answered_receipt, asked.receipt)) IS NULL
    AND (SELECT money.subject_id FROM transaction AS money
        WHERE money.env = asked.env AND money.direction = 'in'
            AND money.receipt = COALESCE(answered_receipt, asked.receipt)) IS NULL
    AND (answered_receipt IS NOT NULL OR (SELECT payment.receipt FROM payment
        WHERE payment.payment_id = asked.payment_id) IS NULL)"""
"""Unreviewed answers whose money no payment has. A payment with another receipt does not have the money of an answer.

Scalar subqueries, because Postgres may hash all payments for EXISTS.
"""

# Undecided answers of any age stay.
FORGET_CHECKS = f"""
DELETE FROM status_check WHERE check_id IN (
    SELECT check_id FROM status_check AS asked WHERE check_id < $1 AND ({_UNDECIDED}) IS NOT TRUE
    ORDER BY check_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

# raw SQL: aggregate
COUNT_UNDECIDED = f"""
SELECT count(*) FROM (
    SELECT 1 FROM status_check AS asked WHERE env = $1 AND ($2::uuid IS NULL OR merchant_id = $2) AND {_UNDECIDED}
    LIMIT 1000) AS undecided
"""

# raw SQL: expression
FIND_UNDECIDED = f"""
SELECT * FROM status_check AS asked WHERE env = $1 AND ($2::uuid IS NULL OR merchant_id = $2) AND {_UNDECIDED}
ORDER BY check_id DESC LIMIT $3
"""
