"""Statements that find a payer's data."""

# raw SQL: join - a payer's number in two columns, each with its index.
# raw SQL: lock - a case's payments do not change while it is erased.
# raw SQL: array - the rows of a case's ids.

FIND_OF_PAYER = """
SELECT payment_id FROM payment
WHERE merchant_id = $1 AND env IN ('sandbox', 'live') AND reverse(phone) = reverse($2::text) AND payment_id > $4
UNION
SELECT payment_id FROM payment WHERE merchant_id = $1 AND received_phone = ANY($3::text[]) AND payment_id > $4
ORDER BY payment_id LIMIT $5
"""

LOCK_OF_CASE = "SELECT * FROM payment WHERE payment_id = ANY($1::uuid[]) FOR UPDATE NOWAIT"

CHECKS_OF_CASE = """
SELECT * FROM status_check WHERE check_id = ANY(ARRAY(
    SELECT unnest($1::uuid[])
    UNION SELECT check_id FROM status_check WHERE payment_id = ANY($1::uuid[])
    UNION SELECT check_id FROM status_check
        WHERE merchant_id = $2 AND payment_id IS NULL
            AND receipt = ANY(ARRAY(SELECT receipt FROM payment WHERE payment_id = ANY($1::uuid[])))))
FOR UPDATE NOWAIT
"""
"""Also queries about a receipt that no payment had yet."""

STEPS_OF_CASE = """
SELECT payment_id, number, detail FROM payment_step WHERE payment_id = ANY($1::uuid[]) FOR UPDATE NOWAIT
"""
