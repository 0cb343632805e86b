"""What must be so in the gateway's books, held against the simulator's ledger: always, and once all has settled."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

_TRUTH = """
WITH push AS (
    -- Tokens spell two letters otherwise, so that no address has a word that M-Pesa filters.
    SELECT *, 'pay_' || translate(substring(callback_url FROM 'pay_([0-9a-z]{26})'), 'io', 'xm') AS payment_id
    FROM sim_push
), paid AS (
    SELECT * FROM payment WHERE status IN ('completed', 'reversed', 'partially_reversed')
), forged AS (
    -- Who lies may plant a receipt, which no query confirms; never money.
    SELECT payment_id FROM push WHERE payment_id = ANY($1::text[]) AND result_code = '0'
), clock AS (
    SELECT $2::timestamptz AS now
), went_back AS (
    SELECT original, COALESCE(sum(amount) FILTER (WHERE originator_conversation_id NOT LIKE 'portal-%'), 0) AS by_us,
        sum(amount) AS in_all
    FROM sim_reversal GROUP BY original
)
"""
"""``forged``: paid payments about which somebody has lied. Reversals by hand, on the portal, are called portal-…"""

ALWAYS: dict[str, str] = {
    "doubled: two prompts for one payment": """
        SELECT payment_id FROM push GROUP BY payment_id HAVING count(*) > 1
    """,
    "invented: paid with a receipt that M-Pesa never gave, or not for this amount": """
        SELECT payment_id FROM paid p WHERE receipt IS NOT NULL AND payment_id NOT IN (SELECT payment_id FROM forged)
            AND NOT EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.receipt AND t.amount = p.amount)
    """,
    "invented: paid with the money of another payer, or for another account": """
        SELECT p.payment_id FROM paid p JOIN sim_transaction t USING (receipt)
        WHERE t.phone <> p.phone OR (t.reference <> '' AND upper(t.reference) <> upper(p.reference)
            -- The answer to a merchant's question about a receipt shows everything but the account.
            AND NOT EXISTS (SELECT 1 FROM payment_step s WHERE s.payment_id = p.payment_id
                AND s.cause = 'status_query' AND s.kind IN ('completed', 'receipt_learnt')))
    """,
    "invented: paid, and nobody has paid": """
        SELECT payment_id FROM paid p WHERE receipt IS NULL
            AND NOT EXISTS (SELECT 1 FROM push WHERE push.payment_id = p.payment_id AND push.result_code = '0')
    """,
    "lost: M-Pesa said that it was paid, and nothing came of it": """
        SELECT p.payment_id FROM payment p JOIN push USING (payment_id)
            JOIN callback c ON c.subject_id = p.payment_id AND c.verdict = 'applied' AND c.result_code = '0'
        WHERE push.result_code = '0' AND p.status IN ('pending', 'failed') AND p.mismatch IS NULL AND p.claim IS NULL
    """,
    "refunds: more is promised than came in": """
        SELECT p.payment_id FROM payment p JOIN refund r USING (payment_id) WHERE r.status <> 'failed'
        GROUP BY p.payment_id, p.amount HAVING sum(r.amount) > p.amount
    """,
    "refunds: more went back than the books say": """
        SELECT p.payment_id FROM payment p JOIN went_back w ON w.original = p.receipt
        WHERE w.by_us > p.refunded + p.refund_reserved
    """,
    "refunds: the books say that more went back than did": """
        SELECT p.payment_id FROM payment p LEFT JOIN went_back w ON w.original = p.receipt
        WHERE p.refunded > COALESCE(w.in_all, 0)
    """,
    "refunds: what is set aside is not what is under way": """
        SELECT p.payment_id FROM payment p LEFT JOIN refund r ON r.payment_id = p.payment_id
        GROUP BY p.payment_id, p.refund_reserved, p.refunded
        HAVING p.refund_reserved <> COALESCE(sum(r.amount) FILTER (WHERE r.status = 'pending'), 0)
            OR p.refunded <> COALESCE(sum(r.amount) FILTER (WHERE r.status = 'completed'), 0)
    """,
    "refunds: one reversal was sent twice": """
        SELECT (SELECT r.refund_id FROM refund r WHERE r.receipt = s.original LIMIT 1) FROM sim_reversal s
        WHERE originator_conversation_id NOT LIKE 'portal-%'
        GROUP BY s.original
        HAVING count(*) > (SELECT count(*) FROM refund r WHERE r.receipt = s.original AND r.reversal <> 'unsent')
    """,
    "events: a change of status without exactly one event": """
        SELECT s.payment_id FROM (
            SELECT payment_id, CASE kind WHEN 'refused' THEN 'failed' WHEN 'expired' THEN 'failed'
                WHEN 'partially_reversed' THEN 'reversed' ELSE kind END AS change, count(*) AS steps
            FROM payment_step
            WHERE kind IN ('completed', 'failed', 'refused', 'expired', 'reversed', 'partially_reversed')
            GROUP BY payment_id, change
        ) s
        WHERE s.steps <> (
            SELECT count(*) FROM event e WHERE e.subject_id = s.payment_id AND e.kind = 'payment.' || s.change)
    """,
    "events: an event without the change that it tells of": """
        SELECT e.event_id FROM event e
        WHERE e.kind IN ('payment.completed', 'payment.failed', 'payment.reversed') AND NOT EXISTS (
            SELECT 1 FROM payment_step s WHERE s.payment_id = e.subject_id AND s.at = e.occurred_at
                AND 'payment.' || CASE s.kind WHEN 'refused' THEN 'failed' WHEN 'expired' THEN 'failed'
                    WHEN 'partially_reversed' THEN 'reversed' ELSE s.kind END = e.kind)
    """,
    "events: a refund that failed, and not exactly one event": """
        SELECT refund_id FROM refund WHERE status = 'failed' AND reversal <> 'unsent'
            AND 1 <> (SELECT count(*) FROM event e WHERE e.subject_id = refund_id AND e.kind = 'refund.failed')
    """,
    "events: money in an event that is not the payment's": """
        SELECT e.event_id FROM event e JOIN payment p ON p.payment_id = e.subject_id
        WHERE e.payload ->> 'amount' <> p.amount || '.00' OR e.payload ->> 'payment_id' <> p.payment_id
    """,
    "events: not exactly one delivery": """
        SELECT e.event_id FROM event e LEFT JOIN delivery d USING (event_id)
        WHERE e.is_public GROUP BY e.event_id HAVING count(d.delivery_id) <> 1
    """,
    "stuck: nobody will look at it again": """
        SELECT payment_id FROM payment WHERE (status = 'pending' OR claim IS NOT NULL) AND due_at IS NULL
            AND (mismatch IS NULL OR claim IS NOT NULL)
        UNION ALL SELECT refund_id FROM refund WHERE status = 'pending' AND due_at IS NULL AND attention IS NULL
        UNION ALL SELECT delivery_id FROM delivery WHERE status = 'pending' AND due_at IS NULL
        UNION ALL SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at IS NULL
        UNION ALL SELECT run_id FROM reconciliation_run WHERE status = 'running' AND lease_until IS NULL
    """,
    "stuck: it is looked at too late": """
        SELECT payment_id FROM payment, clock WHERE due_at > now + interval '16 minutes'
        UNION ALL SELECT refund_id FROM refund, clock WHERE due_at > now + interval '16 minutes'
        UNION ALL SELECT delivery_id FROM delivery, clock WHERE due_at > now + interval '16 minutes'
        UNION ALL SELECT callback_id FROM callback, clock WHERE due_at > now + interval '61 minutes'
        UNION ALL SELECT run_id FROM reconciliation_run, clock WHERE lease_until > now + interval '16 minutes'
        UNION ALL SELECT key FROM idempotency_key, clock
            WHERE state = 'in_flight' AND leased_until > now + interval '16 minutes'
    """,
    "keys: free to send again what has been sent": """
        SELECT k.key FROM idempotency_key k JOIN payment p ON p.payment_id = k.subject_id
        WHERE k.state = 'released' AND (p.charge <> 'released' OR p.payment_id IN (SELECT payment_id FROM push))
        UNION ALL
        SELECT k.key FROM idempotency_key k JOIN refund r ON r.refund_id = k.subject_id
        WHERE k.state = 'released' AND r.reversal <> 'unsent'
    """,
}
"""What must select nothing, whatever has happened and whatever is under way."""

SETTLED: dict[str, str] = {
    "lost: the payer paid, and the payment is not paid": """
        SELECT payment_id FROM push WHERE result_code = '0' AND payment_id NOT IN (SELECT payment_id FROM paid)
    """,
    "lost: money that stands nowhere": """
        SELECT t.receipt FROM sim_transaction t
        WHERE NOT EXISTS (SELECT 1 FROM payment p WHERE p.receipt = t.receipt OR p.received_receipt = t.receipt)
            AND NOT EXISTS (SELECT 1 FROM statement_line l WHERE l.receipt = t.receipt
                AND l.finding IN ('not_found', 'ambiguous') AND l.payment_id IS NULL)
    """,
    "invented: paid, and the money is not in M-Pesa's ledger": """
        SELECT payment_id FROM paid p
        WHERE NOT EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.receipt AND t.amount = p.amount)
            AND payment_id NOT IN (SELECT payment_id FROM forged)
    """,
    "refunds: what went back is not what the books say": """
        SELECT p.payment_id FROM payment p LEFT JOIN went_back w ON w.original = p.receipt
        WHERE COALESCE(w.by_us, 0) > p.refunded OR p.refunded > COALESCE(w.in_all, 0)
            OR (COALESCE(w.by_us, 0) = COALESCE(w.in_all, 0) AND p.refunded <> COALESCE(w.in_all, 0))
    """,
    "stuck: a payment that nobody ends": """
        SELECT payment_id FROM payment p WHERE status = 'pending' AND NOT (
            mismatch IS NOT NULL AND (payment_id = ANY($1::text[])
                OR EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.received_receipt)))
    """,
    "stuck: a success that is neither confirmed nor denied": "SELECT payment_id FROM payment WHERE claim IS NOT NULL",
    "stuck: a refund": "SELECT refund_id FROM refund WHERE status = 'pending'",
    "stuck: a delivery": "SELECT delivery_id FROM delivery WHERE status <> 'delivered'",
    "stuck: a subscriber": "SELECT event_id FROM event_task WHERE done_at IS NULL",
    "stuck: a reconciliation": "SELECT run_id FROM reconciliation_run WHERE status = 'running'",
    "stuck: a callback that nobody has used": "SELECT callback_id FROM callback WHERE verdict <> 'applied'",
}
"""What must select nothing once Daraja is well, every sweep has run, and people have decided what is left to them."""


def _all(checks: dict[str, str]) -> str:
    selects = [
        f"SELECT '{sentence.replace(chr(39), chr(39) * 2)}', found.* FROM ({sql}) found"  # noqa: S608 - our own
        for sentence, sql in checks.items()
    ]
    return _TRUTH + "\nUNION ALL\n".join(selects)


_ALWAYS, _SETTLED = _all(ALWAYS), _all(SETTLED)


async def wrong(db: Any, now: datetime, forged: Sequence[str], *, has_settled: bool = False) -> list[Any]:
    """Everything that is not as it must be: the sentence, and what it is about. ``db`` is anything that fetches."""
    return [tuple(row) for row in await db.fetch(_SETTLED if has_settled else _ALWAYS, list(forged), now)]
