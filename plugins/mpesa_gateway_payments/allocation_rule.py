"""The rule that finds the payments of incoming money."""

from collections.abc import Sequence

from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.money import Kes
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.evidence import Direction, Evidence, Proof, Receiver, Source
from mpesa_gateway_payments.statement_matching import PaymentStatementMatching
from mpesa_gateway_payments.verdicts import AlreadyKnown, Mismatch, PaidBy, Verdict
from mpesa_gateway_transactions.api import AllocationRule, FoundSubject, IncomingMoney, Subject

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
    settled = await (matching.apply if money.source == "c2b" else matching.apply_named)(report)
    is_paid = settled.finding in {"recovered", "already_known"}
    if not is_paid or settled.payment_id is None or settled.merchant_id is None:
        return None
    return FoundSubject(Subject("payment", settled.payment_id), settled.merchant_id)


ALLOCATION_RULE = AllocationRule(name="own_reference", subject_kind="payment", find=find_payments)
