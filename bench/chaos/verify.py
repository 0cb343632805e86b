"""Compares the gateway's books, the simulator's ledger and the merchant's log: lost, doubled, invented, untold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from bench.chaos.merchant import Endpoint
from bench.chaos.shoppers import Shoppers
from mpesa_gateway.app import Gateway
from mpesa_gateway.security.audit import BrokenChain

BOOKS: dict[str, str] = {
    "lost: money that moved and no payment is completed with it": """
        SELECT t.receipt FROM sim_transaction t LEFT JOIN payment p ON p.receipt = t.receipt
        WHERE p.payment_id IS NULL OR p.status NOT IN ('completed', 'reversed', 'partially_reversed')
    """,
    "lost: money that moved and another amount is on the payment": """
        SELECT t.receipt FROM sim_transaction t JOIN payment p ON p.receipt = t.receipt WHERE p.amount <> t.amount
    """,
    "doubled: two payments for one receipt": """
        SELECT receipt FROM payment WHERE receipt IS NOT NULL GROUP BY receipt HAVING count(*) > 1
    """,
    "doubled: two prompts for one payment": """
        SELECT reference FROM sim_push GROUP BY reference HAVING count(*) > 1
    """,
    "doubled: two payments for one Idempotency-Key": """
        SELECT idempotency_key FROM payment GROUP BY merchant_id, idempotency_key HAVING count(*) > 1
    """,
    "invented: a payment that is completed and no money moved": """
        SELECT p.payment_id FROM payment p
        WHERE p.status IN ('completed', 'reversed', 'partially_reversed')
            AND NOT EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.receipt)
    """,
    "invented: money on a payment that asked for another": """
        SELECT p.payment_id FROM payment p JOIN sim_transaction t ON t.receipt = p.receipt
        WHERE p.reference <> t.reference OR p.phone <> t.phone
    """,
    "refunds: more went back than came in": """
        SELECT original FROM sim_reversal JOIN sim_transaction t ON t.receipt = original
        GROUP BY original, t.amount HAVING sum(sim_reversal.amount) > t.amount
    """,
    "refunds: what went back is not what the payment says": """
        SELECT p.payment_id FROM payment p WHERE p.refunded <> (
            SELECT COALESCE(sum(amount), 0) FROM sim_reversal WHERE original = p.receipt)
    """,
    "refunds: completed refunds and reversals differ in number": """
        SELECT p.payment_id FROM payment p
        WHERE (SELECT count(*) FROM refund r WHERE r.payment_id = p.payment_id AND r.status = 'completed')
            <> (SELECT count(*) FROM sim_reversal WHERE original = p.receipt)
    """,
    "refunds: money set aside and no refund under way": """
        SELECT p.payment_id FROM payment p WHERE p.refund_reserved <> (
            SELECT COALESCE(sum(amount), 0) FROM refund r WHERE r.payment_id = p.payment_id AND r.status = 'pending')
    """,
    "events: a status change without exactly one event": """
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
    "events: an event without its delivery": """
        SELECT e.event_id FROM event e LEFT JOIN delivery d USING (event_id)
        WHERE e.is_public AND d.delivery_id IS NULL
    """,
    "stuck: a payment that is still pending": "SELECT payment_id FROM payment WHERE status = 'pending'",
    "stuck: a refund that is still pending": "SELECT refund_id FROM refund WHERE status = 'pending'",
    "stuck: a delivery that was not taken": "SELECT delivery_id FROM delivery WHERE status <> 'delivered'",
    "stuck: a claim that nothing decided": "SELECT payment_id FROM payment WHERE claim IS NOT NULL",
    "stuck: a subscriber that has not run": "SELECT event_id FROM event_task WHERE done_at IS NULL",
    "stuck: a reconciliation that has not ended": "SELECT run_id FROM reconciliation_run WHERE status = 'running'",
}
"""What must select nothing, once all has settled."""

STILL_OPEN = """
SELECT (SELECT count(*) FROM payment WHERE status = 'pending' OR claim IS NOT NULL)
    + (SELECT count(*) FROM refund WHERE status = 'pending')
    + (SELECT count(*) FROM delivery WHERE status = 'pending')
    + (SELECT count(*) FROM event_task WHERE done_at IS NULL)
    + (SELECT count(*) FROM sim_push WHERE state = 'open')
    + (SELECT count(*) FROM sim_callback WHERE due_at IS NOT NULL)
    + (SELECT count(*) FROM sim_result WHERE due_at IS NOT NULL)
    + (SELECT count(*) FROM sim_transaction t WHERE NOT EXISTS (SELECT 1 FROM payment p WHERE p.receipt = t.receipt))
"""
"""How much is under way: zero once all has settled."""

LEFT_TO_A_PERSON = """
SELECT DISTINCT ON (r.payment_id) r.refund_id,
    (SELECT count(*) FROM sim_reversal WHERE original = r.receipt)
        > (SELECT count(*) FROM refund d WHERE d.payment_id = r.payment_id AND d.status = 'completed') AS went_back
FROM refund r WHERE r.status = 'pending' AND r.attention IS NOT NULL
ORDER BY r.payment_id, r.created_at
"""
"""Refunds whose reversal nobody answers for, one of each payment, and whether the simulator's ledger has it."""

_FIGURES: dict[str, str] = {
    "payments": "SELECT count(*) FROM payment",
    "completed": "SELECT count(*) FROM payment WHERE status IN ('completed', 'reversed', 'partially_reversed')",
    "failed": "SELECT count(*) FROM payment WHERE status = 'failed'",
    "refunds": "SELECT count(*) FROM refund",
    "refunds completed": "SELECT count(*) FROM refund WHERE status = 'completed'",
    "refunds decided by a person": "SELECT count(*) FROM refund WHERE result_code = 'operator'",
    "refunds failed": "SELECT count(*) FROM refund WHERE status = 'failed'",
    "money moved (KES)": "SELECT COALESCE(sum(amount), 0) FROM sim_transaction",
    "money sent back (KES)": "SELECT COALESCE(sum(amount), 0) FROM sim_reversal",
    "events": "SELECT count(*) FROM event WHERE is_public",
    "attempts at delivery": "SELECT count(*) FROM attempt",
    "callbacks kept": "SELECT count(*) FROM callback",
    "callbacks repeated": "SELECT COALESCE(sum(repeats), 0) FROM callback",
    "callbacks refused": "SELECT count(*) FROM refused_callback",
    "completed by STK query": "SELECT count(*) FROM payment_step WHERE kind = 'completed' AND cause = 'stk_query'",
    "completed by statement": "SELECT count(*) FROM payment_step WHERE kind = 'completed' AND cause = 'statement'",
    "completed after failing": """
        SELECT count(*) FROM payment_step c WHERE c.kind = 'completed' AND EXISTS (
            SELECT 1 FROM payment_step f WHERE f.payment_id = c.payment_id AND f.number < c.number
                AND f.kind IN ('failed', 'expired', 'refused'))
    """,
    "held for their amount": "SELECT count(*) FROM payment WHERE mismatch = 'amount'",
}


@dataclass
class Findings:
    """What was found wrong (a sentence, and up to five examples), and the figures of the run."""

    wrong: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    figures: dict[str, float] = field(default_factory=dict[str, float])

    def note(self, sentence: str, examples: Sequence[Any]) -> None:
        """Note what is wrong, if there are examples of it."""
        if examples:
            self.wrong[f"{sentence} ({len(examples)})"] = [str(example) for example in examples[:5]]


async def verify(gateway: Gateway, database_url: str, schema: str, endpoint: Endpoint, shop: Shoppers) -> Findings:
    """Look for everything that must not be."""
    findings = Findings()
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url, server_settings={"search_path": schema})
    try:
        for sentence, sql in BOOKS.items():
            findings.note(sentence, [row[0] for row in await connection.fetch(sql)])
        for name, sql in _FIGURES.items():
            findings.figures[name] = int(await connection.fetchval(sql))
        await _check_answers(findings, connection, shop)
        await _check_deliveries(findings, connection, endpoint)
    finally:
        await connection.close()
    try:
        findings.figures["audit entries"] = await gateway.audit.verify()
    except BrokenChain as problem:
        findings.note("the audit log's chain is broken", [problem])
    return findings


async def _check_answers(findings: Findings, connection: Any, shop: Shoppers) -> None:
    """What merchants were answered is what is in the books."""
    findings.note("doubled: one key was answered with two objects", shop.conflicts)
    known = {row["idempotency_key"]: row["payment_id"] for row in await connection.fetch("SELECT * FROM payment")}
    findings.note(
        "lost: a payment that a merchant was told of",
        [key for key, payment_id in shop.payments.items() if payment_id is not None and known.get(key) != payment_id],
    )
    known = {row["idempotency_key"]: row["refund_id"] for row in await connection.fetch("SELECT * FROM refund")}
    findings.note(
        "lost: a refund that a merchant was told of",
        [key for key, refund_id in shop.refunds.items() if refund_id is not None and known.get(key) != refund_id],
    )


async def _check_deliveries(findings: Findings, connection: Any, endpoint: Endpoint) -> None:
    """Every event reached the merchant, under one id, signed; and how long the longest took."""
    taken = endpoint.taken()
    events = await connection.fetch("SELECT event_id, kind, subject_id FROM event WHERE is_public")
    findings.note(
        "untold: an event that the merchant never took", [e["event_id"] for e in events if e["event_id"] not in taken]
    )
    findings.note(
        "a webhook-id that is not its event's",
        [one.webhook_id for one in endpoint.deliveries if one.event.get("id") != one.webhook_id],
    )
    known = {event["event_id"] for event in events}
    findings.note(
        "invented: a webhook about an event that does not exist",
        [one.webhook_id for one in endpoint.deliveries if one.webhook_id not in known],
    )
    findings.note("a webhook that is not signed", [one.webhook_id for one in endpoint.deliveries if not one.is_signed])
    moved = await connection.fetch(
        "SELECT e.event_id, extract(epoch FROM t.at)::float8 AS at FROM sim_transaction t "
        "JOIN payment p ON p.receipt = t.receipt "
        "JOIN event e ON e.subject_id = p.payment_id AND e.kind = 'payment.completed'"
    )
    waits = sorted(taken[row["event_id"]].at - row["at"] for row in moved if row["event_id"] in taken)
    findings.figures["deliveries received"] = len(endpoint.deliveries)
    if waits:
        findings.figures["money moved to merchant told, median (s)"] = round(waits[len(waits) // 2], 2)
        findings.figures["money moved to merchant told, longest (s)"] = round(waits[-1], 2)
