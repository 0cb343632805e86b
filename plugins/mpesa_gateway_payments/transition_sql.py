"""Statements that move payments from one status to another."""

from mpesa_gateway_payments.due_sql import PAST_THEIR_TIME

STEP = """
INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING payment_id
"""

COMPLETE = """
UPDATE payment SET status = 'completed', receipt = $2, result_code = $3, result_desc = $4, failure_reason = NULL,
    mismatch = COALESCE($5, mismatch), received_phone = COALESCE($6, received_phone),
    completed_at = $7, updated_at = $7, due_at = NULL, claim = NULL
WHERE payment_id = $1 AND status = ANY($8::text[])
    AND (status <> 'failed' OR $2::text IS NOT NULL OR NOT outcome_is_final)
RETURNING *
"""

LEARN_RECEIPT = """
UPDATE payment SET receipt = $2, updated_at = $3, mismatch = COALESCE(mismatch, $4),
    received_phone = COALESCE($5, received_phone)
WHERE payment_id = $1 AND status IN ('completed', 'reversed', 'partially_reversed') AND receipt IS NULL
RETURNING *
"""

FAIL = """
UPDATE payment SET status = 'failed', result_code = $2, result_desc = $3, failure_reason = $4, updated_at = $5,
    due_at = $9, outcome_is_final = $8, charge = CASE WHEN $6 THEN 'refused' ELSE charge END
WHERE payment_id = $1 AND status = ANY($7::text[]) AND mismatch IS NULL AND claim IS NULL
RETURNING *
"""

HOLD = """
UPDATE payment SET mismatch = $2, received_amount = $3, received_receipt = $4, received_phone = $5,
    result_code = CASE WHEN status = 'failed' THEN result_code ELSE $6 END,
    result_desc = CASE WHEN status = 'failed' THEN result_desc ELSE $7 END,
    is_mismatch_of_paid = receipt IS NOT NULL AND $2 IN ('amount', 'receipt'), looked_after_at = NULL,
    updated_at = $8, due_at = NULL, claim = NULL
WHERE payment_id = $1 AND (mismatch IS NULL OR mismatch = 'phone')
RETURNING *
"""

HAS_MISMATCH = """
SELECT EXISTS (SELECT 1 FROM payment_step WHERE payment_id = $1 AND kind = 'mismatched' AND detail = $2)
"""

HOLD_AGAIN = """
UPDATE payment SET is_mismatch_of_paid = is_mismatch_of_paid OR (receipt IS NOT NULL AND $2 IN ('amount', 'receipt')),
    looked_after_at = NULL, updated_at = $3
WHERE payment_id = $1
"""
"""A further report that does not fit: an operator who closed the first one has not seen it."""

CLAIM = """
UPDATE payment SET claim = $2::text::jsonb, due_at = $3, expires_at = GREATEST(expires_at, $4), updated_at = $3
WHERE payment_id = $1 AND claim IS NULL
RETURNING *
"""

DROP_CLAIM = """
UPDATE payment SET claim = NULL, updated_at = $2,
    due_at = CASE WHEN status = 'pending' OR failure_reason = 'expired' THEN due_at END
WHERE payment_id = $1
"""

RESERVE = """
UPDATE payment SET refund_reserved = refund_reserved + $2, updated_at = $3
WHERE payment_id = $1 AND status IN ('completed', 'partially_reversed') AND refund_reserved + refunded + $2 <= amount
RETURNING *
"""

RELEASE = """
UPDATE payment SET refund_reserved = refund_reserved - $2, updated_at = $3 WHERE payment_id = $1
"""

REVERSE = """
WITH reversed AS (
    UPDATE payment SET refund_reserved = refund_reserved - $2, refunded = refunded + $2, updated_at = $3,
        status = CASE WHEN refunded + $2 = amount THEN 'reversed' ELSE 'partially_reversed' END
    WHERE payment_id = $1 AND status IN ('completed', 'partially_reversed') AND refund_reserved >= $2
    RETURNING *
), outgoing AS (
    INSERT INTO outgoing_receipt (env, receipt, payment_id, noted_at)
    SELECT env, $4, payment_id, $3 FROM reversed WHERE $4::text IS NOT NULL
    ON CONFLICT (env, receipt) DO NOTHING
)
SELECT * FROM reversed
"""
"""``$4`` is the reversal's own receipt: it is known as money that went out."""

END_MANY = """
UPDATE payment SET status = told.status, receipt = told.receipt, result_code = told.result_code,
    result_desc = told.result_desc, failure_reason = told.failure_reason,
    completed_at = CASE WHEN told.status = 'completed' THEN $8::timestamptz END, updated_at = $8::timestamptz,
    outcome_is_final = told.outcome_is_final, due_at = NULL
FROM (
    SELECT * FROM (
        SELECT payment.ctid AS place, t.* FROM (
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[])
                AS t(payment_id, status, receipt, result_code, result_desc, failure_reason, outcome_is_final)
            LIMIT cardinality($1)
        ) AS t JOIN payment USING (payment_id)
        -- A batch waits for no lock: a row that is locked is written alone afterwards.
        FOR UPDATE OF payment SKIP LOCKED
    ) AS free
    -- Two batches that bring the same receipts, for other payments each, write them in the same order.
    ORDER BY receipt
) AS told
-- By its place, so that Postgres goes through them in that order: by payment_id it may begin with the payments.
WHERE payment.ctid = told.place AND payment.status = 'pending' AND mismatch IS NULL AND claim IS NULL
RETURNING payment.payment_id
"""

END_STEPS = """
INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail)
SELECT payment_id, $5::timestamptz, status, 'callback', result_code, result_desc
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS told(payment_id, status, result_code, result_desc)
ORDER BY payment_id
RETURNING payment_id
"""

END_EXPIRED = f"""
WITH due AS MATERIALIZED (
    SELECT payment_id FROM payment WHERE {PAST_THEIR_TIME} AND claim IS NULL
    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE payment SET status = 'failed', updated_at = $1, outcome_is_final = charge = 'released',
        failure_reason = CASE charge WHEN 'released' THEN 'not_sent' ELSE 'expired' END,
        result_code = CASE charge WHEN 'released' THEN 'unsent' ELSE 'expired' END,
        result_desc = CASE charge WHEN 'released' THEN $5 ELSE $6 END,
        due_at = CASE WHEN charge <> 'released' AND checkout_request_id IS NOT NULL THEN (
            SELECT min(created_at + make_interval(secs => after)) FROM unnest($4::double precision[]) AS after
            WHERE created_at + make_interval(secs => after) > $1) END
    FROM due WHERE payment.payment_id = due.payment_id
    RETURNING payment.*
), step AS (
    INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail)
    SELECT payment_id, $1, 'expired', 'expiry', result_code, result_desc FROM ended ORDER BY payment_id
)
SELECT * FROM ended
"""  # noqa: S608 - the clause above
"""A set-based ``FAIL`` with its steps: after an outage thousands are past their time."""
