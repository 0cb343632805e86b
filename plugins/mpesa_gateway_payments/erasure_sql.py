"""Statements that erase who paid."""

FIND_OF_PAYER = """
SELECT payment_id FROM payment
WHERE merchant_id = $1 AND env IN ('sandbox', 'live') AND phone = $2 AND payment_id > $4
UNION
SELECT payment_id FROM payment WHERE merchant_id = $1 AND received_phone = ANY($3::text[]) AND payment_id > $4
ORDER BY payment_id LIMIT $5
"""

LOCK_OF_CASE = "SELECT * FROM payment WHERE payment_id = ANY($1::text[]) FOR UPDATE NOWAIT"

CHECKS_OF_CASE = """
SELECT * FROM status_check WHERE payment_id = ANY($1::text[]) OR check_id = ANY($1::text[]) FOR UPDATE NOWAIT
"""

STEPS_OF_CASE = """
SELECT payment_id, number, detail FROM payment_step WHERE payment_id = ANY($1::text[]) FOR UPDATE NOWAIT
"""

ERASED = (
    "phone",
    "erased_at",
    "received_phone",
    "reference",
    "description",
    "result_desc",
    "callback_url",
    "checkout_request_id",
    "metadata",
)

ERASE = """
UPDATE payment SET phone = $2, erased_at = $3, received_phone = $4, reference = $5, description = $6, result_desc = $7,
    callback_url = $8, checkout_request_id = $9, metadata = $10::text::jsonb
WHERE payment_id = $1
"""
"""Takes what ``ERASED`` names, in this order."""

ERASE_STEP = "UPDATE payment_step SET detail = $3 WHERE payment_id = $1 AND number = $2"

ERASE_CHECK = "UPDATE status_check SET result_desc = $2, reference = $3, asked_for = $4 WHERE check_id = $1"
