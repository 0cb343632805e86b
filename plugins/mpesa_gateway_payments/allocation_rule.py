"""The rule that finds the payments of incoming money."""

from collections.abc import Sequence
from datetime import timedelta

from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.errors import NotFound
from mpesa_gateway.money import MAXIMUM, Kes
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.api import Payments
from mpesa_gateway_payments.evidence import Direction, Evidence, Proof, Receiver, Source
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.statement_matching import PaymentStatementMatching
from mpesa_gateway_payments.verdicts import AlreadyKnown, Mismatch, NotAssignable, PaidBy, Verdict
from mpesa_gateway_transactions.api import (
    AllocationRule,
    Assignment,
    FoundSubject,
    IncomingMoney,
    NotAllocatable,
    Subject,
)

RECENT_PUSH = timedelta(seconds=120)

# raw SQL: hot path - each confirmation that names no payment.
MAY_BE_EXPLAINED = """
SELECT amount IS NOT NULL AND EXISTS (SELECT 1 FROM payment
    WHERE env = t.env AND shortcode = number AND payment.amount = t.amount AND receipt IS NULL
        AND status IN ('pending', 'completed') AND created_at > LEAST($5, since)
        AND created_at > CASE status WHEN 'pending' THEN $5 ELSE since END) AS is_expected
FROM unnest($1::text[], $2::text[], $3::integer[], $4::timestamptz[]) WITH ORDINALITY
    AS t(env, number, amount, since, place)
ORDER BY place
"""

_REASONS = {
    "not_ours": "M-Pesa's reports do not show that this money came in at the receiver",
    "receiver": "the payment is of another shortcode than the money",
    "paid": "the payment has the receipt of other money",
    "another": "M-Pesa's evidence fits another payment: leave this money to it",
    "merchant": "a payment of another merchant of this shortcode fits as well: the gateway's operator decides",
    "differs": "the money does not fit the payment: amount, payer, reference and time must be the payment's",
}

_SOURCES = {"c2b": (Source.C2B, Proof.ADDRESS), "pull": (Source.STATEMENT, Proof.PAGE)}


def evidence_of(money: IncomingMoney) -> Evidence:
    source, proof = _SOURCES.get(money.source, (Source.STATUS_QUERY, Proof.ANSWER))
    shillings, cents = divmod(money.amount_cents or 0, 100)
    is_whole = money.amount_cents is not None and cents == 0 and shillings > 0
    return Evidence(
        source=source,
        proof=proof,
        direction=Direction.IN,
        receiver=Receiver(money.env, money.number, is_till=money.is_till),
        receipt=money.receipt,
        reference=money.account_number,
        amount=Kes(shillings) if is_whole else None if money.amount_cents is None else f"{shillings}.{cents:02}",
        payer=money.payer_digest or money.payer,
        time=(money.occurred_at,),
    )


async def find_payments(gateway: Runtime, money: Sequence[IncomingMoney]) -> list[FoundSubject | None]:
    """Complete the payments of the money, and return them."""
    matching = gateway.port(PaymentStatementMatching)
    reports = [evidence_of(one) for one in money]
    verdicts = await matching.judge(reports)
    if len(money) > 1 and any(_names_payment(verdict) for verdict in verdicts):
        # A payment is locked before any transaction.
        raise ConcurrentUpdate("one of several reports is a payment's")
    return [
        await _settle(matching, one, report) if _names_payment(verdict) else None
        for one, report, verdict in zip(money, reports, verdicts, strict=True)
    ]


def _names_payment(verdict: Verdict) -> bool:
    return isinstance(verdict, PaidBy | AlreadyKnown | Mismatch)


async def _settle(matching: PaymentStatementMatching, money: IncomingMoney, report: Evidence) -> FoundSubject | None:
    settled = await matching.allocate(report, by_rule=money.source == "c2b")
    is_paid = settled.finding in {"recovered", "already_known"}
    if not is_paid or settled.payment_id is None or settled.merchant_id is None:
        return None
    return FoundSubject(Subject("payment", settled.payment_id), settled.merchant_id)


async def expect_payments(gateway: Runtime, money: Sequence[IncomingMoney]) -> list[bool]:
    """Return True where a payment of the same receiver and amount may have the money.

    It is pending with a recent push, or was paid at the time of the money and has no receipt.
    """
    within = gateway.settings(PaymentsSettings).rules.match_within
    rows = await gateway.db.fetch(
        MAY_BE_EXPLAINED,
        [one.env for one in money],
        [one.number for one in money],
        [_requestable(one.amount_cents) for one in money],
        [one.occurred_at - within for one in money],
        gateway.clock.now() - RECENT_PUSH,
    )
    return [row["is_expected"] for row in rows]


def _requestable(amount_cents: int | None) -> int | None:
    shillings, cents = divmod(amount_cents or 0, 100)
    return shillings if cents == 0 and 0 < shillings <= MAXIMUM else None


async def assign_payment(gateway: Runtime, choice: Assignment) -> FoundSubject:
    payment_id = choice.subject_id
    chosen = await gateway.port(Payments).find(payment_id)
    if chosen is None or chosen.env != choice.money.env or choice.merchant_id not in {None, chosen.merchant_id}:
        raise NotFound("there is no such payment")
    settled = await gateway.port(PaymentStatementMatching).assign(
        evidence_of(choice.money), payment_id, choice.lock, by_operator=choice.by_operator, is_noted=True
    )
    if isinstance(settled, NotAssignable):
        raise NotAllocatable(_REASONS[settled.reason])
    if settled.finding == "mismatched":
        raise NotAllocatable(f"the money differs from what {payment_id} asks for: its amount or receipt is another")
    return FoundSubject(Subject("payment", payment_id), chosen.merchant_id)


async def find_claim(gateway: Runtime, money: IncomingMoney) -> FoundSubject | None:
    """Return a payment without a receipt that may own the money, preferably of its merchant."""
    owners = await gateway.port(PaymentStatementMatching).possible_owners(evidence_of(money))
    if not owners:
        return None
    first = min(owners, key=lambda one: (one.merchant_id != money.merchant_id, one.payment_id))
    return FoundSubject(Subject("payment", first.payment_id), first.merchant_id)


ALLOCATION_RULE = AllocationRule(
    name="own_reference",
    subject_kind="payment",
    find=find_payments,
    is_expected=expect_payments,
    assign=assign_payment,
    claims=find_claim,
)
