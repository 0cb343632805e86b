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

FORGET_CHECKS = """
DELETE FROM status_check WHERE check_id IN (
    SELECT check_id FROM status_check WHERE check_id < $1 ORDER BY check_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

_UNDECIDED = """FROM status_check AS asked
WHERE env = $1 AND finding = 'ambiguous' AND check_id >= id_least('chk', $2)
    AND ($3::uuid IS NULL OR asked.merchant_id = $3)
    AND NOT EXISTS (SELECT FROM payment
        WHERE payment.env = asked.env AND payment.receipt = COALESCE(answered_receipt, asked.receipt))
    AND NOT EXISTS (SELECT FROM transaction AS money
        WHERE money.env = asked.env AND money.direction = 'in'
            AND money.receipt = COALESCE(answered_receipt, asked.receipt) AND money.subject_id IS NOT NULL)
    AND (answered_receipt IS NOT NULL OR NOT EXISTS (SELECT FROM payment
        WHERE payment.payment_id = asked.payment_id AND payment.receipt IS NOT NULL))"""
"""Answers whose money no payment has.

A payment with another receipt does not have the money that an answer states."""

# raw SQL: aggregate
COUNT_UNDECIDED = f"SELECT count(*) FROM (SELECT 1 {_UNDECIDED} LIMIT 1000) AS undecided"  # noqa: S608 - the clause above

# raw SQL: join
FIND_UNDECIDED = f"""
SELECT * FROM status_check WHERE check_id IN (SELECT check_id {_UNDECIDED}) ORDER BY check_id DESC LIMIT 100
"""  # noqa: S608 - the same reason
