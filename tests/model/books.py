"""Invariants of the gateway's books against the simulator's ledger: at any time, and once settled."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bench.chaos.truth import CHECKS, TAKEN, truth

_TRUTH = f"""
WITH {truth(has_worlds=True)}, forged AS (
    -- A forger may invent a receipt, which no query confirms, but no money.
    SELECT payment_id FROM push WHERE payment_id IN (SELECT id_uuid(unnest($1::text[]))) AND result_code = '0'
), by_hand AS (
    -- Lines assigned to a payment by a merchant or an operator, without evidence against it.
    SELECT id_uuid(unnest($3::text[])) AS payment_id
), clock AS (
    SELECT $2::timestamptz AS now
), went_back AS (
    SELECT original, COALESCE(sum(amount) FILTER (WHERE originator_conversation_id NOT LIKE 'portal-%'), 0) AS by_us,
        sum(amount) AS in_all
    FROM sim_reversal GROUP BY original
)
"""  # noqa: S608 - constants of this file
"""``forged``: paid payments with a forged callback. Receipts of reversals on the portal start with portal-…"""

_EXCUSED = {
    "nothing": " AND payment_id NOT IN (SELECT payment_id FROM forged)",
    "a stranger": " AND payment_id NOT IN (SELECT payment_id FROM by_hand)",
}

ALWAYS: dict[str, str] = {
    "doubled: two prompts for one payment": """
        SELECT payment_id FROM push GROUP BY payment_id HAVING count(*) > 1
    """,
    **{sentence: sql + _EXCUSED.get(TAKEN.get(sentence, ""), "") for sentence, sql in CHECKS.items()},
    "invented: a prompt of another world or receiver than its payment's": """
        SELECT payment_id FROM push JOIN payment p USING (payment_id)
        WHERE p.env <> push.env OR p.shortcode NOT IN (push.shortcode, push.receiver)
    """,
    "invented: paid without money": """
        SELECT payment_id FROM paid p WHERE receipt IS NULL
            AND NOT EXISTS (SELECT 1 FROM push WHERE push.payment_id = p.payment_id AND push.result_code = '0')
    """,
    "lost: M-Pesa reported success, and the payment is not completed": """
        SELECT p.payment_id FROM payment p JOIN push USING (payment_id)
            JOIN callback c ON c.subject_id = p.payment_id AND c.verdict = 'applied' AND c.result_code = '0'
        WHERE push.result_code = '0' AND p.status IN ('pending', 'failed') AND p.mismatch IS NULL AND p.claim IS NULL
    """,
    "refunds: more is promised than came in": """
        SELECT p.payment_id FROM payment p JOIN refund r USING (payment_id) WHERE r.status <> 'failed'
        GROUP BY p.payment_id, p.amount HAVING sum(r.amount) > p.amount
    """,
    "refunds: more was reversed than recorded": """
        SELECT p.payment_id FROM payment p JOIN went_back w ON w.original = p.receipt
        WHERE w.by_us > p.refunded + p.refund_reserved
    """,
    "refunds: less was reversed than recorded": """
        SELECT p.payment_id FROM payment p LEFT JOIN went_back w ON w.original = p.receipt
        WHERE p.refunded > COALESCE(w.in_all, 0)
    """,
    "refunds: the reserved amount differs from the pending refunds": """
        SELECT p.payment_id FROM payment p LEFT JOIN refund r ON r.payment_id = p.payment_id
            LEFT JOIN went_back w ON w.original = p.receipt
        GROUP BY p.payment_id, p.refund_reserved, p.refunded, w.in_all, w.by_us
        HAVING p.refund_reserved <> COALESCE(sum(r.amount) FILTER (WHERE r.status = 'pending'), 0)
            -- Reversals on M-Pesa's portal are in the books once M-Pesa has reported them.
            OR p.refunded - COALESCE(sum(r.amount) FILTER (WHERE r.status = 'completed'), 0)
                NOT BETWEEN 0 AND COALESCE(w.in_all - w.by_us, 0)
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
            FROM payment_timeline
            WHERE kind IN ('completed', 'failed', 'refused', 'expired', 'reversed', 'partially_reversed')
            GROUP BY payment_id, change
        ) s
        WHERE s.steps <> (
            SELECT count(*) FROM event e WHERE e.subject_id = s.payment_id AND e.kind = 'payment.' || s.change)
    """,
    "events: an event without its change": """
        SELECT e.event_id FROM event e
        WHERE e.kind IN ('payment.completed', 'payment.failed', 'payment.reversed') AND NOT EXISTS (
            SELECT 1 FROM payment_timeline s WHERE s.payment_id = e.subject_id AND s.at = e.occurred_at
                AND 'payment.' || CASE s.kind WHEN 'refused' THEN 'failed' WHEN 'expired' THEN 'failed'
                    WHEN 'partially_reversed' THEN 'reversed' ELSE s.kind END = e.kind)
    """,
    "events: a refund that failed, and not exactly one event": """
        SELECT refund_id FROM refund WHERE status = 'failed' AND reversal <> 'unsent'
            AND 1 <> (SELECT count(*) FROM event e WHERE e.subject_id = refund_id AND e.kind = 'refund.failed')
    """,
    "events: money in an event that is not the payment's": """
        SELECT e.event_id FROM event e JOIN payment p ON p.payment_id = e.subject_id
        WHERE e.body::jsonb -> 'data' ->> 'amount' <> p.amount || '.00'
            OR e.body::jsonb -> 'data' ->> 'payment_id' <> id_text(p.payment_id)
    """,
    "events: not exactly one delivery": """
        SELECT e.event_id FROM event e LEFT JOIN delivery d USING (event_id)
        WHERE e.is_public GROUP BY e.event_id HAVING count(d.delivery_id) <> 1
    """,
    "stuck: no job will process it": """
        SELECT payment_id FROM payment WHERE (status = 'pending' OR claim IS NOT NULL) AND due_at IS NULL
            AND (mismatch IS NULL OR claim IS NOT NULL)
        UNION ALL SELECT refund_id FROM refund WHERE status = 'pending' AND due_at IS NULL AND attention IS NULL
        UNION ALL SELECT delivery_id FROM delivery WHERE status = 'pending' AND due_at IS NULL
        UNION ALL SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at IS NULL
        UNION ALL SELECT run_id FROM reconciliation_run WHERE status = 'running' AND lease_until IS NULL
    """,
    "stuck: it is processed too late": """
        -- An expired payment is queried for two more days.
        SELECT payment_id FROM payment, clock
        WHERE due_at > now + CASE status WHEN 'pending' THEN interval '16 minutes' ELSE interval '48 hours' END
        UNION ALL SELECT refund_id FROM refund, clock WHERE due_at > now + interval '16 minutes'
        UNION ALL SELECT delivery_id FROM delivery, clock WHERE due_at > now + interval '16 minutes'
        UNION ALL SELECT callback_id FROM callback, clock WHERE due_at > now + interval '61 minutes'
        UNION ALL SELECT run_id FROM reconciliation_run, clock WHERE lease_until > now + interval '16 minutes'
        UNION ALL SELECT subject_id FROM idempotency_key, clock
            WHERE state = 'in_flight' AND leased_until > now + interval '16 minutes'
    """,
    "keys: free to send again what has been sent": """
        SELECT k.subject_id FROM idempotency_key k JOIN payment p ON p.payment_id = k.subject_id
        WHERE k.state = 'released' AND (p.charge <> 'released' OR p.payment_id IN (SELECT payment_id FROM push))
        UNION ALL
        SELECT k.subject_id FROM idempotency_key k JOIN refund r ON r.refund_id = k.subject_id
        WHERE k.state = 'released' AND r.reversal <> 'unsent'
    """,
}
"""Queries that return no row at any time."""

SETTLED: dict[str, str] = {
    "lost: the payer paid, and the payment is not paid": """
        SELECT payment_id FROM push WHERE result_code = '0' AND payment_id NOT IN (SELECT payment_id FROM paid)
    """,
    "lost: an acknowledgement that arrived": """
        SELECT push.payment_id FROM push JOIN payment p USING (payment_id)
        WHERE push.checkout_request_id = ANY($4::text[]) AND p.checkout_request_id IS NULL
    """,
    "untold: M-Pesa reported a reversal on its portal, and no event followed": """
        SELECT p.payment_id FROM payment p JOIN went_back w ON w.original = p.receipt
            JOIN status_check c ON c.payment_id = p.payment_id AND c.state = 'answered'
                AND c.transaction_status = 'Reversed'
        WHERE w.by_us = 0 AND NOT EXISTS (SELECT 1 FROM event e WHERE e.subject_id = p.payment_id
            AND e.kind NOT IN ('payment.created', 'payment.completed', 'payment.failed'))
    """,
    "lost: money that is not recorded": """
        SELECT t.receipt FROM sim_transaction t
        WHERE t.party = '' AND NOT t.is_out
            AND NOT EXISTS (SELECT 1 FROM transaction x WHERE x.env = t.env AND x.direction = 'in'
                AND x.receipt = t.receipt AND x.amount_cents = t.amount * 100::bigint)
    """,
    "invented: paid, and the money is not in M-Pesa's ledger": """
        SELECT payment_id FROM paid p
        WHERE NOT EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.receipt AND t.amount = p.amount)
            AND payment_id NOT IN (SELECT payment_id FROM forged)
    """,
    "refunds: the reversed amount differs from the recorded one": """
        SELECT p.payment_id FROM payment p LEFT JOIN went_back w ON w.original = p.receipt
        WHERE COALESCE(w.by_us, 0) > p.refunded OR p.refunded > COALESCE(w.in_all, 0)
            OR (COALESCE(w.by_us, 0) = COALESCE(w.in_all, 0) AND p.refunded <> COALESCE(w.in_all, 0))
    """,
    "stuck: a payment that never ends": """
        SELECT payment_id FROM payment p WHERE status = 'pending' AND NOT (
            mismatch IS NOT NULL AND (payment_id IN (SELECT id_uuid(unnest($1::text[])))
                OR EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.received_receipt)))
    """,
    "stuck: a success that is neither confirmed nor denied": "SELECT payment_id FROM payment WHERE claim IS NOT NULL",
    "stuck: a refund": "SELECT refund_id FROM refund WHERE status = 'pending'",
    "stuck: a delivery": "SELECT delivery_id FROM delivery WHERE status <> 'delivered'",
    "stuck: a subscriber": "SELECT event_id FROM event_task WHERE done_at IS NULL",
    "stuck: a reconciliation": "SELECT run_id FROM reconciliation_run WHERE status = 'running'",
    "stuck: a callback that no handler has processed": "SELECT callback_id FROM callback WHERE verdict <> 'applied'",
}
"""Queries that return no row once Daraja is healthy, every sweep has run, and operators have decided open cases."""


def _all(checks: dict[str, str]) -> str:
    selects = [
        f"SELECT '{sentence.replace(chr(39), chr(39) * 2)}', what::text FROM ({sql}) found (what)"  # noqa: S608 - constants of this file
        for sentence, sql in checks.items()
    ]
    # Postgres needs the type of each value, so a check names unused parameters too.
    needs = "SELECT '', '' WHERE $1::text[] IS NULL OR $3::text[] IS NULL OR $4::text[] IS NULL"
    return _TRUTH + "\nUNION ALL\n".join([needs, *selects])


_ALWAYS, _SETTLED = _all(ALWAYS), _all(SETTLED)


@dataclass
class Known:
    """The model's knowledge in addition to the ledger.

    ``forged``: payments with a forged callback; ``assigned``: payments with a statement line assigned by a person
    and no evidence against it; ``acknowledged``: pushes whose acknowledgement arrived.
    """

    forged: set[str] = field(default_factory=set[str])
    assigned: set[str] = field(default_factory=set[str])
    acknowledged: set[str] = field(default_factory=set[str])


async def wrong(db: Any, now: datetime, known: Known, *, has_settled: bool = False) -> list[Any]:
    """Return every violation: the sentence and its object. ``db`` is any object with ``fetch``."""
    values = (sorted(known.forged), now, sorted(known.assigned), sorted(known.acknowledged))
    return [tuple(row) for row in await db.fetch(_SETTLED if has_settled else _ALWAYS, *values)]


LEFT_TO_A_PERSON = f"""
WITH {truth(has_worlds=True)}
SELECT n.transaction_id AS line_id, n.merchant_id, n.env, p.payment_id
FROM statement_note n JOIN transaction l USING (transaction_id)
    JOIN sim_transaction t ON t.receipt = l.receipt AND t.env = l.env
    JOIN push ON push.checkout_request_id = t.checkout_request_id
    JOIN payment p ON p.payment_id = push.payment_id AND p.merchant_id = n.merchant_id
WHERE n.finding = 'ambiguous' AND n.payment_id IS NULL AND l.subject_id IS NULL
"""  # noqa: S608 - constants of this file
"""Statement lines that match several payments, and the payment whose push moved the money."""

HELD_WITH_A_RECEIPT = """
SELECT merchant_id, env, received_receipt FROM payment
WHERE status = 'pending' AND mismatch = 'unconfirmed' AND received_receipt IS NOT NULL
"""
"""Payments whose reported success M-Pesa neither confirmed nor denied in time: an operator queries the receipt."""

MAY_BE_ASSIGNED = f"""
WITH {truth(has_worlds=True)}
SELECT EXISTS (SELECT 1 FROM made_for WHERE made_for.payment_id = p.payment_id AND made_for.receipt = moved.receipt)
    OR (moved.checkout_request_id IS NULL AND NOT moved.is_out AND moved.env = p.env AND moved.amount = p.amount
        AND moved.shortcode IN (SELECT receiver FROM push WHERE push.payment_id = p.payment_id)
        AND CASE moved.payer_shown WHEN 'absent' THEN true
            WHEN 'masked' THEN left(moved.phone, 5) = left(p.phone, 5) AND right(moved.phone, 3) = right(p.phone, 3)
            WHEN 'partial' THEN left(moved.phone, 6) = left(p.phone, 6) AND right(moved.phone, 3) = right(p.phone, 3)
            ELSE moved.phone = p.phone END)
FROM payment p, sim_transaction moved WHERE p.payment_id = id_uuid($1) AND moved.receipt = $2
"""  # noqa: S608 - constants of this file
"""True if no statement speaks against the assignment.

The money was sent for no other payment, came in, has this env, receiver and amount, and its payer can be the payment's.
"""
