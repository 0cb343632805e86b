"""Compares the gateway's books, the simulator's ledger and the merchant's log: lost, doubled, invented, untold."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.chaos.merchant import Endpoint
from bench.chaos.shoppers import Purchase
from bench.chaos.truth import CHECKS, truth
from mpesa_gateway.app import Gateway
from mpesa_gateway.security.audit import BrokenChain
from mpesa_gateway_callbacks.plugin import plugin as callbacks
from mpesa_gateway_credentials.plugin import plugin as credentials
from mpesa_gateway_payments.plugin import plugin as payments
from mpesa_gateway_reconciliation.plugin import plugin as reconciliation
from mpesa_gateway_refunds.plugin import plugin as refunds
from mpesa_gateway_transactions.plugin import plugin as transactions
from mpesa_gateway_webhooks.plugin import plugin as webhooks

_TRUTH = truth(has_worlds=False)

OUR_OWN: dict[str, str] = {
    **{sentence: f"WITH {_TRUTH} {sql}" for sentence, sql in CHECKS.items()},
    "doubled: two prompts for one payment": """
        SELECT reference FROM sim_push GROUP BY reference HAVING count(*) > 1
    """,
    "doubled: two payments for one Idempotency-Key": """
        SELECT idempotency_key FROM payment GROUP BY merchant_id, idempotency_key HAVING count(*) > 1
    """,
    "doubled: more went back than came in": """
        SELECT original FROM sim_reversal JOIN sim_transaction t ON t.receipt = original
        GROUP BY original, t.amount HAVING sum(sim_reversal.amount) > t.amount
    """,
    "untold: an event with another amount or receipt than the payment": """
        SELECT e.event_id FROM event e JOIN payment p ON p.payment_id = e.subject_id
        WHERE (e.body::jsonb->'data'->>'amount')::numeric <> p.amount OR (e.kind = 'payment.completed'
            AND e.body::jsonb->'data'->>'receipt' IS NOT NULL
            AND e.body::jsonb->'data'->>'receipt' IS DISTINCT FROM p.receipt)
    """,
    "untold: an event without its delivery": """
        SELECT e.event_id FROM event e LEFT JOIN delivery d USING (event_id)
        WHERE e.is_public AND d.delivery_id IS NULL
    """,
    "stuck: a row that no job will process": """
        SELECT payment_id FROM payment
        WHERE (status = 'pending' OR claim IS NOT NULL) AND due_at IS NULL AND mismatch IS NULL
        UNION ALL SELECT refund_id FROM refund WHERE status = 'pending' AND due_at IS NULL AND attention IS NULL
        UNION ALL SELECT delivery_id FROM delivery WHERE status = 'pending' AND due_at IS NULL
        UNION ALL SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at IS NULL
        UNION ALL SELECT event_id FROM event_task WHERE done_at IS NULL AND due_at IS NULL
    """,
}
"""Checks outside the ledger's invariants, which know neither the simulator nor the requests of a run."""

_WORDS = {
    "payments.receipt_pays_once": "doubled",
    "payments.refunds_fit": "doubled",
    "payments.success_counts": "lost",
    "refunds.sums_are_the_payments": "lost",
}
"""The kind of a violation of a ledger invariant; ``untold`` for any other."""

ALWAYS: dict[str, str] = OUR_OWN | {
    f"{_WORDS.get(f'{plugin.name}.{invariant.name}', 'untold')}: {invariant.sentence}, not so": invariant.sql
    for plugin in (callbacks, credentials, payments, reconciliation, refunds, transactions, webhooks)
    for invariant in plugin.invariants
    if invariant.grace is None
}
"""Queries that return no row at any moment, under any fault."""

AT_LAST: dict[str, str] = {
    "lost: money that moved and no payment is completed with it": """
        SELECT t.receipt FROM sim_transaction t LEFT JOIN payment p ON p.receipt = t.receipt
        WHERE t.kind = 'push' AND (p.payment_id IS NULL
            OR p.status NOT IN ('completed', 'reversed', 'partially_reversed'))
    """,
    "invented: a payment that is completed and no money moved": """
        SELECT p.payment_id FROM payment p
        WHERE p.status IN ('completed', 'reversed', 'partially_reversed')
            AND NOT EXISTS (SELECT 1 FROM sim_transaction t WHERE t.receipt = p.receipt)
    """,
    "lost: the reversed amount differs from the payment's": """
        SELECT p.payment_id FROM payment p WHERE p.refunded <> (
            SELECT COALESCE(sum(amount), 0) FROM sim_reversal WHERE original = p.receipt)
    """,
    "doubled: completed refunds and reversals differ in number": """
        SELECT p.payment_id FROM payment p
        WHERE (SELECT count(*) FROM refund r WHERE r.payment_id = p.payment_id AND r.status = 'completed')
            <> (SELECT count(*) FROM sim_reversal WHERE original = p.receipt)
    """,
    "stuck: a payment that is still pending": "SELECT payment_id FROM payment WHERE status = 'pending'",
    "stuck: a refund that is still pending": "SELECT refund_id FROM refund WHERE status = 'pending'",
    "stuck: a delivery that was not taken": "SELECT delivery_id FROM delivery WHERE status <> 'delivered'",
    "stuck: a claim that nothing decided": "SELECT payment_id FROM payment WHERE claim IS NOT NULL",
    "stuck: a subscriber that has not run": "SELECT event_id FROM event_task WHERE done_at IS NULL",
    "stuck: a callback that no handler has processed": "SELECT callback_id FROM callback WHERE verdict <> 'applied'",
    "stuck: a reconciliation that has not ended": "SELECT run_id FROM reconciliation_run WHERE status = 'running'",
}
"""Queries that return no row once all has settled."""

STILL_OPEN = """
SELECT (SELECT count(*) FROM payment WHERE status = 'pending' OR claim IS NOT NULL)
    + (SELECT count(*) FROM refund WHERE status = 'pending')
    + (SELECT count(*) FROM delivery WHERE status = 'pending')
    + (SELECT count(*) FROM callback WHERE verdict = 'waiting')
    + (SELECT count(*) FROM event_task WHERE done_at IS NULL)
    + (SELECT count(*) FROM reconciliation_run WHERE status = 'running')
    + (SELECT count(*) FROM sim_push WHERE state = 'open')
    + (SELECT count(*) FROM sim_callback WHERE due_at IS NOT NULL)
    + (SELECT count(*) FROM sim_result WHERE due_at IS NOT NULL)
    + (SELECT count(*) FROM sim_transaction t WHERE kind = 'push'
        AND NOT EXISTS (SELECT 1 FROM payment p WHERE p.receipt = t.receipt))
"""
"""The pending work: zero once all has settled."""

LEFT_TO_A_PERSON = """
SELECT DISTINCT ON (r.payment_id) r.refund_id,
    (SELECT count(*) FROM sim_reversal WHERE original = r.receipt)
        > (SELECT count(*) FROM refund d WHERE d.payment_id = r.payment_id AND d.status = 'completed') AS went_back
FROM refund r WHERE r.status = 'pending' AND r.attention IS NOT NULL
ORDER BY r.payment_id, r.created_at
"""
"""Refunds without a reversal result, one of each payment, and whether the simulator's ledger has the reversal."""

LINES_LEFT_TO_A_PERSON = f"""
WITH {_TRUTH}
SELECT n.transaction_id AS line_id, n.merchant_id, p.payment_id
FROM statement_note n JOIN transaction l USING (transaction_id)
JOIN sim_transaction t ON t.receipt = l.receipt JOIN push USING (checkout_request_id)
JOIN payment p ON p.payment_id = push.payment_id AND p.merchant_id = n.merchant_id
WHERE n.finding = 'ambiguous' AND n.payment_id IS NULL AND l.subject_id IS NULL
"""  # noqa: S608 - constants of this file
"""Statement lines that match several payments, and the payment whose push moved the money."""

_FIGURES: dict[str, str] = {
    "payments": "SELECT count(*) FROM payment",
    "completed": "SELECT count(*) FROM payment WHERE status IN ('completed', 'reversed', 'partially_reversed')",
    "failed": "SELECT count(*) FROM payment WHERE status = 'failed'",
    "refunds": "SELECT count(*) FROM refund",
    "refunds completed": "SELECT count(*) FROM refund WHERE status = 'completed'",
    "refunds decided by a person": "SELECT count(*) FROM refund WHERE result_code = 'operator'",
    "refunds failed": "SELECT count(*) FROM refund WHERE status = 'failed'",
    "money moved (KES)": "SELECT COALESCE(sum(amount), 0) FROM sim_transaction WHERE kind = 'push'",
    "strangers' transactions": "SELECT count(*) FROM sim_transaction WHERE kind <> 'push' AND at <= now()",
    "strangers' transactions close to a payment": """
        SELECT count(*) FROM sim_transaction t WHERE kind IN ('pay_bill', 'buy_goods') AND at <= now() AND EXISTS (
            SELECT 1 FROM sim_push s WHERE s.receiver = t.shortcode AND s.amount = t.amount
                AND right(s.phone, 3) = right(t.phone, 3) AND left(s.phone, 6) = left(t.phone, 6)
                AND t.at BETWEEN s.created_at - interval '2 minutes' AND s.created_at + interval '15 minutes')
    """,
    "strangers' transactions on statements": """
        SELECT count(DISTINCT l.receipt) FROM transaction l JOIN sim_transaction t USING (receipt)
        WHERE t.kind <> 'push'
    """,
    "statement lines left to a person": "SELECT count(*) FROM noted_line WHERE finding = 'ambiguous' AND NOT is_known",
    "money sent back (KES)": "SELECT COALESCE(sum(amount), 0) FROM sim_reversal",
    "events": "SELECT count(*) FROM event WHERE is_public",
    "attempts at delivery": "SELECT count(*) FROM attempt_log",
    "callbacks kept": "SELECT count(*) FROM callback",
    "callbacks repeated": "SELECT COALESCE(sum(repeats), 0) FROM callback",
    "callbacks refused": "SELECT count(*) FROM refused_callback",
    "completed by STK query": "SELECT count(*) FROM payment WHERE completed_by = 'stk_query'",
    "completed by statement": "SELECT count(*) FROM payment WHERE completed_by = 'statement'",
    "completed after failing": """
        SELECT count(DISTINCT payment_id) FROM payment JOIN payment_step USING (payment_id)
        WHERE completed_at IS NOT NULL AND kind IN ('failed', 'expired', 'refused')
    """,
    "held for their amount": "SELECT count(*) FROM payment WHERE mismatch = 'amount'",
}


class Buyers(Protocol):
    """The buyers: their requests by Idempotency-Key, and the answers."""

    purchases: dict[str, Purchase]
    payments: dict[str, str | None]
    refunds: dict[str, str | None]
    conflicts: list[str]
    unexplained: list[str]


@dataclass
class Findings:
    """The violations (a sentence, and up to five examples), and the figures of the run."""

    wrong: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    figures: dict[str, float] = field(default_factory=dict[str, float])
    counts: Counter[str] = field(default_factory=Counter[str])
    """The number of violations by the first word of the sentence: lost, doubled, invented, untold, stuck."""

    def note(self, sentence: str, examples: Sequence[Any]) -> None:
        """Record a violation if there are examples of it."""
        if examples:
            self.wrong[f"{sentence} ({len(examples)})"] = [str(example) for example in examples[:5]]
            self.counts[sentence.partition(":")[0]] += len(examples)


async def run_checks(gateway: Gateway, checks: dict[str, str], findings: Findings) -> None:
    """Record the rows of each query. Raises asyncpg's error when Postgres is unavailable."""
    for sentence, sql in checks.items():
        findings.note(sentence, [row[0] for row in await gateway.db.fetch(sql)])


async def verify(gateway: Gateway, endpoint: Endpoint, shop: Buyers) -> Findings:
    """Run every check, once all has settled."""
    findings = Findings()
    await run_checks(gateway, ALWAYS | AT_LAST, findings)
    for name, sql in _FIGURES.items():
        findings.figures[name] = int(await gateway.db.fetchval(sql))
    await _check_prompts(findings, gateway, shop)
    await _check_answers(findings, gateway, shop)
    await _check_deliveries(findings, gateway, endpoint)
    try:
        findings.figures["audit entries"] = await gateway.audit.verify()
    except BrokenChain as problem:
        findings.note("altered: the audit log's chain is broken", [problem])
    return findings


async def _check_prompts(findings: Findings, gateway: Gateway, shop: Buyers) -> None:
    """The prompts equal the requests, once for each Idempotency-Key: each buyer has its own number."""
    keys = {purchase.phone: key for key, purchase in shop.purchases.items()}
    prompts = await gateway.db.fetch("SELECT phone, amount FROM sim_push")
    prompted = Counter(row["phone"] for row in prompts)
    findings.note(
        "doubled: two prompts for one Idempotency-Key",
        [keys.get(phone) for phone, times in prompted.items() if times > 1],
    )
    findings.note(
        "invented: a prompt without a request",
        [row["phone"] for row in prompts if keys.get(row["phone"]) is None]
        + [key for row in prompts if (key := keys.get(row["phone"])) and shop.purchases[key].amount != row["amount"]],
    )
    findings.figures["prompts"] = len(prompts)


async def _check_answers(findings: Findings, gateway: Gateway, shop: Buyers) -> None:
    """The answers to merchants equal the books."""
    findings.note("doubled: one key was answered with two objects", shop.conflicts)
    findings.note("unexplained: an answer that nothing broken explains", shop.unexplained)
    rows = await gateway.db.fetch("SELECT idempotency_key, id_text(payment_id) AS payment_id FROM payment")
    known = {row["idempotency_key"]: row["payment_id"] for row in rows}
    findings.note(
        "lost: a payment that a merchant got as an answer",
        [key for key, payment_id in shop.payments.items() if payment_id is not None and known.get(key) != payment_id],
    )
    rows = await gateway.db.fetch("SELECT idempotency_key, id_text(refund_id) AS refund_id FROM refund")
    known = {row["idempotency_key"]: row["refund_id"] for row in rows}
    findings.note(
        "lost: a refund that a merchant got as an answer",
        [key for key, refund_id in shop.refunds.items() if refund_id is not None and known.get(key) != refund_id],
    )


async def _check_deliveries(findings: Findings, gateway: Gateway, endpoint: Endpoint) -> None:
    """Every event reached the merchant, under one id with identical bytes, signed; records the longest delay."""
    delivered = endpoint.delivered()
    rows = await gateway.db.fetch("SELECT id_text(event_id) AS event_id, event.body FROM event WHERE is_public")
    bodies = {row["event_id"]: row["body"].encode() for row in rows}
    findings.note("untold: an event that the merchant never took", [one for one in bodies if one not in delivered])
    findings.note(
        "untold: a webhook-id that is not its event's",
        [one.webhook_id for one in endpoint.deliveries if one.event.get("id") != one.webhook_id],
    )
    findings.note(
        "invented: a webhook about an event that does not exist",
        [one.webhook_id for one in endpoint.deliveries if one.webhook_id not in bodies],
    )
    findings.note(
        "untold: a webhook that differs from its event",
        [one.webhook_id for one in endpoint.deliveries if bodies.get(one.webhook_id, one.body) != one.body],
    )
    findings.note(
        "untold: a webhook that is not signed", [one.webhook_id for one in endpoint.deliveries if not one.is_signed]
    )
    findings.note("unexplained: a request at another address of the merchant's", endpoint.other_requests)
    moved = await gateway.db.fetch(
        "SELECT id_text(e.event_id) AS event_id, extract(epoch FROM t.at)::float8 AS at FROM sim_transaction t "
        "JOIN payment p ON p.receipt = t.receipt "
        "JOIN event e ON e.subject_id = p.payment_id AND e.kind = 'payment.completed' WHERE t.kind = 'push'"
    )
    waits = sorted(delivered[row["event_id"]].at - row["at"] for row in moved if row["event_id"] in delivered)
    findings.figures["deliveries received"] = len(endpoint.deliveries)
    if waits:
        findings.figures["money moved to webhook delivered, median (s)"] = round(waits[len(waits) // 2], 2)
        findings.figures["money moved to webhook delivered, longest (s)"] = round(waits[-1], 2)
