"""Invariants of refunds that constraints cannot express."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="sums_are_the_payments",
        sentence="The refunded and reserved amounts of a payment are the sums of its refunds",
        sql="""
            SELECT payment.payment_id FROM payment LEFT JOIN (
                SELECT payment_id, COALESCE(sum(amount) FILTER (WHERE status = 'completed'), 0) AS gone,
                    COALESCE(sum(amount) FILTER (WHERE status = 'pending'), 0) AS reserved
                FROM refund GROUP BY payment_id
            ) AS refunds ON refunds.payment_id = payment.payment_id
            WHERE (refunded <> COALESCE(gone, 0) AND reversed_outside IS DISTINCT FROM 'whole')
                OR refund_reserved <> COALESCE(reserved, 0)
        """,
    ),
    Invariant(
        name="fits_its_payment",
        sentence="A refund is of its payment's merchant, environment, amount and receipt",
        sql="""
            SELECT refund_id FROM refund JOIN payment USING (payment_id)
            WHERE (refund.merchant_id, refund.env, refund.original_amount, refund.receipt)
                IS DISTINCT FROM (payment.merchant_id, payment.env, payment.amount, payment.receipt)
        """,
    ),
    Invariant(
        name="sums_are_the_transactions",
        sentence="The refunded and reserved amounts of a transaction are the sums of its refunds",
        sql="""
            SELECT transaction.transaction_id FROM transaction LEFT JOIN (
                SELECT transaction_id, COALESCE(sum(amount) FILTER (WHERE status = 'completed'), 0) AS gone,
                    COALESCE(sum(amount) FILTER (WHERE status = 'pending'), 0) AS reserved
                FROM refund WHERE transaction_id IS NOT NULL GROUP BY transaction_id
            ) AS refunds ON refunds.transaction_id = transaction.transaction_id
            WHERE (reversed_outside IS NULL AND refunded_cents <> 100 * COALESCE(gone, 0))
                OR refund_reserved_cents <> 100 * COALESCE(reserved, 0)
                OR (reversed_outside IS NOT NULL AND gone > 0)
        """,
    ),
    Invariant(
        name="fits_its_transaction",
        sentence="A refund is of its transaction's environment, amount in whole KES and receipt",
        sql="""
            SELECT refund_id FROM refund JOIN transaction USING (transaction_id)
            WHERE (refund.env, refund.original_amount, refund.receipt)
                IS DISTINCT FROM (transaction.env, transaction.amount_cents / 100, transaction.receipt)
        """,
    ),
    Invariant(
        name="completed_was_published",
        sentence="A refund that went through has exactly one event payment.reversed or transaction.refunded",
        sql="""
            SELECT refund_id FROM refund LEFT JOIN event
                ON event.subject_id = COALESCE(refund.payment_id, refund.transaction_id)
                AND event.kind = CASE WHEN payment_id IS NULL THEN 'transaction.refunded' ELSE 'payment.reversed' END
                AND event.body::jsonb -> 'data' ->> 'refund_id' = id_text(refund.refund_id)
            WHERE status = 'completed' GROUP BY refund_id HAVING count(event_id) <> 1
        """,
    ),
    Invariant(
        name="failed_was_published",
        sentence="A failed refund has exactly one event refund.failed, unless nothing was ever sent",
        sql="""
            SELECT refund_id FROM refund
            LEFT JOIN event ON event.subject_id = refund_id AND event.kind = 'refund.failed'
            WHERE status = 'failed' AND reversal <> 'unsent' GROUP BY refund_id HAVING count(event_id) <> 1
        """,
    ),
    Invariant(
        name="pending_is_due",
        sentence="A pending refund has a time of its next status query, or needs review",
        sql="SELECT refund_id FROM refund WHERE status = 'pending' AND due_at IS NULL AND attention IS NULL",
    ),
    Invariant(
        name="nothing_overdue",
        sentence="No refund is overdue for a status query",
        sql="SELECT refund_id FROM refund WHERE due_at < $1",
        grace=timedelta(minutes=10),
    ),
    Invariant(
        name="key_names_its_refund",
        sentence="An Idempotency-Key refers to the refund that was made with it, settled once its reversal was sent",
        sql="""
            SELECT refund_id FROM refund JOIN idempotency_key
                ON digest = key_digest(refund.merchant_id, refund.env, refund.idempotency_key)
                    AND operation IN ('', 'refund')
            WHERE subject_id <> refund_id OR (reversal IN ('accepted', 'unknown', 'refused') AND state <> 'settled')
                OR (state = 'released' AND reversal <> 'unsent')
            UNION ALL
            SELECT subject_id FROM idempotency_key WHERE has_prefix(subject_id, 'rfd')
                AND NOT EXISTS (SELECT 1 FROM refund WHERE refund_id = subject_id)
        """,
    ),
    Invariant(
        name="env_is_its_refunds",
        sentence="An event and an Idempotency-Key belong to the env of their refund",
        sql="""
            SELECT event_id FROM event JOIN refund ON refund_id = subject_id
            WHERE event.env IS DISTINCT FROM refund.env AND is_public
            UNION ALL
            SELECT refund_id FROM refund JOIN idempotency_key ON subject_id = refund_id
            WHERE idempotency_key.env <> refund.env
        """,
    ),
)
