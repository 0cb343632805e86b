"""The statements on status checks."""

from mpesa_gateway.db.named import Named

CHECKS_OF = "SELECT * FROM status_check WHERE payment_id = $1 ORDER BY check_id LIMIT 50"

INSERT_CHECK = Named("""
INSERT INTO status_check (check_id, merchant_id, env, shortcode, payment_id, receipt, asked_for, reference, created_at)
VALUES ($check_id, $merchant_id, $env, $shortcode, $payment_id, $receipt, $asked_for, $reference, $created_at)
""")

CHECK_ASKED = """
UPDATE status_check SET state = CASE WHEN state = 'sending' THEN 'asked' ELSE state END,
    originator_conversation_id = NULLIF($2, ''), conversation_id = NULLIF($3, '')
WHERE check_id = $1 AND originator_conversation_id IS NULL AND conversation_id IS NULL
RETURNING check_id
"""

CHECK_FAILED = """
UPDATE status_check SET state = $2, result_code = $3, result_desc = $4, finished_at = $5
WHERE check_id = $1 AND state = 'sending'
"""

CHECK_FINISHED = """
UPDATE status_check SET state = $2, result_code = $3, result_desc = $4, transaction_status = $5, finding = $6,
    finished_at = $7
WHERE check_id = $1 AND state <> 'answered'
"""

FIND_CHECK = "SELECT * FROM status_check WHERE merchant_id = $1 AND env = $2 AND check_id = $3"

LOCK_CHECK = "SELECT * FROM status_check WHERE check_id = $1 FOR UPDATE"

FORGET_CHECKS = """
DELETE FROM status_check WHERE check_id IN (
    SELECT check_id FROM status_check WHERE check_id < $1 ORDER BY check_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

LOCK_CHECK_BY_HANDLE = """
SELECT * FROM status_check WHERE originator_conversation_id = $1 OR ($1::text IS NULL AND conversation_id = $2)
ORDER BY check_id DESC LIMIT 1 FOR UPDATE
"""
