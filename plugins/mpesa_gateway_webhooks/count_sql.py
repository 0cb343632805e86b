"""Counts of deliveries for operators, of one merchant or of all."""

# raw SQL: aggregate - counted up to a limit.

OWED = """
SELECT count(*) AS owed, min(created_at) AS oldest
FROM (SELECT created_at FROM delivery WHERE status = 'pending' AND env = ANY($1::text[]) ORDER BY due_at LIMIT 10000)
    AS pending
"""

OWED_TO = """
SELECT count(*) AS owed, min(created_at) AS oldest
FROM (SELECT created_at FROM delivery WHERE merchant_id = $2 AND env = $1 AND status = 'pending'
        ORDER BY delivery_id LIMIT 10000) AS pending
"""

DEAD_SINCE = """
SELECT count(*) FROM merchant CROSS JOIN unnest($2::text[]) AS world CROSS JOIN LATERAL (SELECT 1 FROM delivery
    WHERE delivery.merchant_id = merchant.merchant_id AND delivery.env = world AND status = 'dead'
        AND delivery_id >= $1 LIMIT 1000) AS lost
WHERE $3::uuid IS NULL OR merchant.merchant_id = $3
"""

WAITING = """
SELECT count(*) AS merchants, min(oldest) AS oldest FROM merchant CROSS JOIN LATERAL (
    SELECT created_at AS oldest FROM delivery
    WHERE delivery.merchant_id = merchant.merchant_id AND delivery.env = $1 AND status = 'waiting' AND delivery_id >= $2
    ORDER BY delivery_id LIMIT 1) AS waiting
WHERE merchant.is_active AND ($3::uuid IS NULL OR merchant.merchant_id = $3)
"""
