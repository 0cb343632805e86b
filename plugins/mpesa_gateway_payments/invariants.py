"""Invariants of payments that no constraint of Postgres enforces."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.

INVARIANTS = (
    Invariant(
        name="change_has_one_event",
        sentence="Every change of a payment's status has exactly one event, and every such event its change",
        sql="""
            SELECT COALESCE(changed.payment_id, published.payment_id)
            FROM (
                SELECT payment_id, count(*) AS times, CASE
                    WHEN kind = 'completed' THEN 'payment.completed'
                    WHEN kind IN ('reversed', 'partially_reversed', 'reversal_seen') THEN 'payment.reversed'
                    ELSE 'payment.failed' END AS kind
                FROM payment_timeline
                WHERE kind IN ('completed', 'failed', 'refused', 'expired', 'reversed', 'partially_reversed',
                    'reversal_seen')
                GROUP BY 1, 3
            ) AS changed
            FULL JOIN (
                SELECT subject_id AS payment_id, count(*) AS times, kind FROM event
                WHERE kind IN ('payment.completed', 'payment.failed', 'payment.reversed')
                GROUP BY 1, 3
            ) AS published ON published.payment_id = changed.payment_id AND published.kind = changed.kind
            WHERE changed.times IS DISTINCT FROM published.times
        """,
    ),
    Invariant(
        name="status_is_its_timelines",
        sentence="A payment's status agrees with its timeline",
        sql="""
            SELECT payment.payment_id FROM payment LEFT JOIN (
                SELECT payment_id, CASE
                    WHEN bool_or(kind = 'reversed') THEN 'reversed'
                    WHEN bool_or(kind = 'partially_reversed') THEN 'partially_reversed'
                    WHEN bool_or(kind = 'completed') THEN 'completed'
                    ELSE 'failed' END AS status
                FROM payment_timeline
                WHERE kind IN ('completed', 'failed', 'refused', 'expired', 'reversed', 'partially_reversed')
                GROUP BY payment_id
            ) AS published ON published.payment_id = payment.payment_id
            WHERE payment.status <> COALESCE(published.status, 'pending')
        """,
    ),
    Invariant(
        name="completed_has_its_time",
        sentence="A paid payment has a time of completion, and no other payment has one",
        sql="""
            SELECT payment_id FROM payment
            WHERE (status IN ('completed', 'reversed', 'partially_reversed')) <> (completed_at IS NOT NULL)
        """,
    ),
    Invariant(
        name="receipt_pays_once",
        sentence="A receipt pays for one payment",
        sql="""
            SELECT env || ' ' || receipt FROM payment WHERE receipt IS NOT NULL
            GROUP BY env, receipt HAVING count(*) > 1
        """,
    ),
    Invariant(
        name="receipt_is_its_transaction",
        sentence="A payment's receipt is that of its transaction with its amount; others contradict a mismatch",
        sql="""
            SELECT COALESCE(payment_id, transaction_id)
            FROM payment FULL JOIN (SELECT * FROM transaction WHERE subject_kind = 'payment') AS money
                ON subject_id = payment_id
            WHERE (payment.receipt IS NOT NULL OR transaction_id IS NOT NULL)
                AND (payment.env, 'in', payment.merchant_id, payment.receipt, amount * 100::bigint)
                    IS DISTINCT FROM (money.env, direction, money.merchant_id, money.receipt, amount_cents)
            UNION ALL
            SELECT transaction_id FROM transaction LEFT JOIN payment ON payment_id = conflict_id
            WHERE conflict_id IS NOT NULL AND mismatch IS NULL
        """,
    ),
    Invariant(
        name="money_is_its_receivers",
        sentence="The money of a payment, and money in conflict with it, arrived at the payment's shortcode",
        sql="""
            SELECT DISTINCT transaction_id
            FROM transaction JOIN receiver USING (receiver_id)
                CROSS JOIN LATERAL (VALUES (subject_id), (conflict_id)) AS named (payment_id)
                JOIN payment USING (payment_id)
            WHERE number <> shortcode
        """,
    ),
    Invariant(
        name="reversed_receipt_is_applied",
        sentence="A payment whose receipt M-Pesa reported as reversed at its receiver is marked as reversed",
        sql="""
            SELECT payment.payment_id FROM outgoing_receipt AS gone JOIN payment
                ON payment.env = gone.env AND payment.receipt = gone.receipt AND payment.shortcode = gone.number
            WHERE noted_at < $1
        """,
        grace=timedelta(minutes=10),
    ),
    Invariant(
        name="refunds_fit",
        sentence="Refunds of a payment never exceed its amount, and only a paid payment has refunds",
        sql="""
            SELECT payment_id FROM payment
            WHERE refunded + refund_reserved > amount OR refunded < 0 OR refund_reserved < 0
                OR (refunded + refund_reserved > 0 AND completed_at IS NULL)
        """,
    ),
    Invariant(
        name="mismatch_was_published",
        sentence="Every mismatch of a payment was published to its merchant",
        sql="""
            SELECT payment_id FROM payment WHERE mismatch IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM event WHERE subject_id = payment_id AND kind = 'payment.mismatched')
        """,
    ),
    Invariant(
        name="success_counts",
        sentence="A payment that M-Pesa reported as paid is completed, mismatched, being confirmed or refuted",
        sql="""
            SELECT payment_id FROM payment
            WHERE status IN ('pending', 'failed') AND mismatch IS NULL AND claim IS NULL
                AND (EXISTS (SELECT 1 FROM callback WHERE subject_id = payment_id
                        AND kind = 'stk' AND result_code = '0' AND verdict = 'applied')
                    OR EXISTS (SELECT 1 FROM callback WHERE handle = checkout_request_id AND handle <> ''
                        AND subject_id IS NULL AND kind = 'stk' AND result_code = '0' AND verdict = 'applied'))
                AND NOT EXISTS (SELECT 1 FROM payment_step WHERE payment_step.payment_id = payment.payment_id
                    AND payment_step.kind = 'unconfirmed')
        """,
    ),
    Invariant(
        name="pending_is_due",
        sentence="A pending payment has the time of its next check, or needs review",
        sql="SELECT payment_id FROM payment WHERE status = 'pending' AND due_at IS NULL AND mismatch IS NULL",
    ),
    Invariant(
        name="nothing_overdue",
        sentence="No payment is overdue for a status query",
        sql="SELECT payment_id FROM payment WHERE due_at < $1",
        grace=timedelta(minutes=10),
    ),
    Invariant(
        name="key_names_its_payment",
        sentence="An Idempotency-Key names the payment that was created with it",
        sql="""
            SELECT payment_id FROM payment JOIN idempotency_key
                ON digest = key_digest(payment.merchant_id, payment.env, payment.idempotency_key)
            WHERE idempotency_key.subject_id <> payment.payment_id AND operation IN ('', 'payment')
            UNION ALL
            SELECT subject_id FROM idempotency_key WHERE has_prefix(subject_id, 'pay')
                AND NOT EXISTS (SELECT 1 FROM payment WHERE payment_id = subject_id)
        """,
    ),
    Invariant(
        name="key_is_settled",
        sentence="The Idempotency-Key of a payment that was sent is settled, and a released key sent nothing",
        sql="""
            SELECT payment_id FROM payment JOIN idempotency_key
                ON digest = key_digest(payment.merchant_id, payment.env, payment.idempotency_key)
                    AND operation IN ('', 'payment')
            WHERE (charge IN ('accepted', 'unknown', 'refused') AND state <> 'settled')
                OR (state = 'released' AND charge <> 'released')
        """,
    ),
    Invariant(
        name="env_is_its_payments",
        sentence="A status query, an event and an Idempotency-Key belong to the env of their payment",
        sql="""
            SELECT check_id FROM status_check JOIN payment USING (payment_id) WHERE status_check.env <> payment.env
            UNION ALL
            SELECT event_id FROM event JOIN payment ON payment_id = subject_id
            WHERE event.env IS DISTINCT FROM payment.env AND is_public
            UNION ALL
            SELECT payment_id FROM payment JOIN idempotency_key ON subject_id = payment_id
            WHERE idempotency_key.env <> payment.env
        """,
    ),
)
