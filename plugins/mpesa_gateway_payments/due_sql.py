"""Statements that find and claim payments which are due to be asked about, or whose time is up."""

DUE_SHORTCODES = """
WITH RECURSIVE open AS (
    -- From one shortcode with open payments to the next, along the index: many of one are not read for it.
    (SELECT shortcode_id FROM payment WHERE due_at IS NOT NULL ORDER BY shortcode_id LIMIT 1)
    UNION ALL
    SELECT (SELECT payment.shortcode_id FROM payment
        WHERE due_at IS NOT NULL AND payment.shortcode_id > open.shortcode_id ORDER BY payment.shortcode_id LIMIT 1)
    FROM open WHERE open.shortcode_id IS NOT NULL
)
SELECT shortcode_id, oldest.due_at FROM open CROSS JOIN LATERAL (
    SELECT due_at FROM payment
    WHERE payment.shortcode_id = open.shortcode_id AND due_at <= $1
        AND checkout_request_id IS NOT NULL AND mismatch IS NULL
    ORDER BY due_at LIMIT 1
) AS oldest
ORDER BY oldest.due_at
"""
"""A shortcode is an account at Daraja; each has its own questions."""

CLAIM_DUE_OF = """
UPDATE payment SET due_at = $3, asked = asked + 1
WHERE payment_id IN (
    SELECT payment_id FROM payment
    WHERE shortcode_id = $1 AND due_at <= $2 AND checkout_request_id IS NOT NULL AND mismatch IS NULL
    -- Those that expired wait for those that have not: after an outage there may be thousands.
    ORDER BY status = 'failed' AND claim IS NULL, due_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
RETURNING *
"""

_PAST_THEIR_TIME = """
status = 'pending' AND mismatch IS NULL AND expires_at <= $1 AND NOT payment_id = ANY($3::text[])
    AND charge NOT IN ('ready', 'sending')
"""

_VERSIONED = "SELECT payment.*, payment.xmin::text AS version FROM payment"

EXPIRED = f"SELECT * FROM payment WHERE {_PAST_THEIR_TIME} ORDER BY expires_at LIMIT $2"  # noqa: S608 - the clause above

LOCK_EXPIRED = f"""
{_VERSIONED} WHERE {_PAST_THEIR_TIME}
ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
"""After an outage thousands are past their time. What is locked elsewhere is found by the next run."""

ABANDONED = """
SELECT payment_id FROM payment
WHERE status = 'pending' AND mismatch IS NULL AND expires_at <= $1 AND charge IN ('ready', 'sending')
    AND checkout_request_id IS NULL AND due_at <= $2
ORDER BY expires_at LIMIT $3
"""
"""Payments whose push has no record after the lease of their key; ``expires_at`` counts from the same moment."""

LOCK_ONE_EXPIRED = f"""
{_VERSIONED} WHERE payment_id = $1 AND status = 'pending' AND mismatch IS NULL AND expires_at <= $2
FOR UPDATE SKIP LOCKED
"""

_ASKED_ABOUT = "(status = 'pending' OR claim IS NOT NULL OR (status = 'failed' AND failure_reason = 'expired'))"

CLAIM_DUE = f"""
UPDATE payment SET due_at = $3, asked = asked + 1
WHERE payment_id = $1 AND {_ASKED_ABOUT} AND (due_at <= $2 OR $4) AND mismatch IS NULL
RETURNING *
"""  # noqa: S608 - the clause above

ASK_AGAIN = f"""
UPDATE payment SET due_at = $2 WHERE payment_id = $1 AND {_ASKED_ABOUT} AND due_at IS NOT NULL
"""  # noqa: S608 - likewise
