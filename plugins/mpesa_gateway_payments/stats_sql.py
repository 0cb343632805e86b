"""Statements that count payments by hour and read the counts."""

# raw SQL: upsert - each hour is counted and written in one statement.
# raw SQL: aggregate - the hours of several merchants are added up.

STATS = """
WITH changed AS (
    SELECT DISTINCT payment.merchant_id, payment.env, date_trunc('hour', payment.created_at, 'UTC') AS hour
    FROM payment WHERE updated_at >= $1
), one AS (
    SELECT changed.*, status, failure_reason, amount, refunded, completed_at IS NOT NULL AS is_paid,
        width_bucket(extract(epoch FROM completed_at - created_at)::float8, $3::float8[]) AS wait
    FROM changed CROSS JOIN LATERAL (
        SELECT * FROM payment
        WHERE payment.merchant_id = changed.merchant_id AND payment.env = changed.env
            AND payment.payment_id >= id_least('pay', changed.hour)
            AND payment.payment_id < id_least('pay', changed.hour + interval '1 hour')
        OFFSET 0
    ) AS asked
), why AS (
    SELECT hour, merchant_id, env, jsonb_object_agg(failure_reason, count) AS reasons
    FROM (SELECT hour, merchant_id, env, failure_reason, count(*) FROM one WHERE status = 'failed' GROUP BY 1, 2, 3, 4)
        AS failed
    GROUP BY 1, 2, 3
), counted AS (
    SELECT hour, merchant_id, env, count(*) AS asked, count(*) FILTER (WHERE is_paid) AS paid,
        count(*) FILTER (WHERE status = 'failed') AS failed, coalesce(sum(amount) FILTER (WHERE is_paid), 0) AS taken,
        sum(refunded) AS returned, ARRAY[
            count(*) FILTER (WHERE wait = 0), count(*) FILTER (WHERE wait = 1), count(*) FILTER (WHERE wait = 2),
            count(*) FILTER (WHERE wait = 3), count(*) FILTER (WHERE wait = 4), count(*) FILTER (WHERE wait = 5)
        ] AS waits
    FROM one GROUP BY 1, 2, 3
)
INSERT INTO payment_stats AS known (hour, merchant_id, env, asked, paid, failed, taken, returned, reasons, waits,
    counted_at)
SELECT hour, merchant_id, env, asked, paid, failed, taken, returned, coalesce(reasons, '{}'), waits, $2
FROM counted LEFT JOIN why USING (hour, merchant_id, env) ORDER BY hour, merchant_id, env
ON CONFLICT (hour, merchant_id, env) DO UPDATE SET asked = EXCLUDED.asked, paid = EXCLUDED.paid,
    failed = EXCLUDED.failed, taken = EXCLUDED.taken, returned = EXCLUDED.returned, reasons = EXCLUDED.reasons,
    waits = EXCLUDED.waits, counted_at = EXCLUDED.counted_at
WHERE known.counted_at <= EXCLUDED.counted_at
"""

_BY_HOUR = """
SELECT hour, sum(asked)::bigint AS asked, sum(paid)::bigint AS paid, sum(failed)::bigint AS failed,
    sum(taken)::bigint AS taken, sum(returned)::bigint AS returned, ARRAY[sum(waits[1])::bigint, sum(waits[2])::bigint,
        sum(waits[3])::bigint, sum(waits[4])::bigint, sum(waits[5])::bigint, sum(waits[6])::bigint] AS waits
FROM payment_stats WHERE env = $1 AND hour >= $2"""

STATS_BY_HOUR = f"{_BY_HOUR} GROUP BY hour"
STATS_BY_HOUR_OF = f"{_BY_HOUR} AND merchant_id = $3 GROUP BY hour"

STATS_BY_ENV = """
SELECT env, sum(asked)::bigint AS asked, sum(paid)::bigint AS paid, sum(failed)::bigint AS failed,
    sum(taken)::bigint AS taken, sum(returned)::bigint AS returned
FROM payment_stats WHERE hour >= $1 GROUP BY env
"""

FAILURE_REASONS = """
SELECT env, key AS reason, sum(value::bigint)::bigint AS count
FROM payment_stats CROSS JOIN LATERAL jsonb_each_text(reasons) WHERE hour >= $1 GROUP BY env, key
ORDER BY count DESC, key
"""

FAILURE_REASONS_OF = """
SELECT env, key AS reason, sum(value::bigint)::bigint AS count
FROM payment_stats CROSS JOIN LATERAL jsonb_each_text(reasons)
WHERE env = $1 AND hour >= $2 AND merchant_id = $3 GROUP BY env, key
ORDER BY count DESC, key
"""
