"""Pure decisions: the effect of a report on a payment."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from mpesa_gateway_payments import verdicts
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.evidence import (
    Evidence,
    Handle,
    Proof,
    ReportedMoney,
    Source,
    has_receipt_of_unknown,
    read_amount,
    read_callback,
    reported_money,
)
from mpesa_gateway_payments.matching import judge, judge_other_push, names_payment
from mpesa_gateway_payments.result_codes import Outcome, stk_outcome
from mpesa_gateway_payments.states import Cause, Charge, Status, is_transition_allowed
from mpesa_gateway_payments.verdicts import Payment, Rules, Verdict

EXPIRED = "M-Pesa reported no result in time; a late proof of money still completes this payment"
UNSENT = "never sent, and the request was not repeated"
"""Result descriptions of expired payments; UNSENT may have a reason appended."""

_ANOTHER = "this callback is about another payment than its address"
_PAID = frozenset({Status.COMPLETED.value, Status.REVERSED.value, Status.PARTIALLY_REVERSED.value})


@dataclass(frozen=True)
class StkCallback:
    """``names_another``: its CheckoutRequestID is another payment's of the env."""

    result: StkResulted
    names_another: bool = False


@dataclass(frozen=True)
class StkAnswer:
    """An STK query's answer: paid or not paid, never pending."""

    outcome: Outcome


@dataclass(frozen=True)
class MatchedMoney:
    """A report of money, judged against all payments."""

    verdict: Verdict
    reported: ReportedMoney
    cause: Cause


@dataclass(frozen=True, kw_only=True)
class ReportedFailure:
    """No money moved. ``is_final``: no later money is expected. ``due_at``: time of a further query."""

    code: str
    text: str
    reason: str
    cause: Cause
    step: str = "failed"
    is_final: bool = False
    due_at: datetime | None = None


@dataclass(frozen=True)
class Expired:
    """The payment expired without a result.

    ``ask_at``: time of the next query. ``unsent_reason``: the last push was not sent.
    """

    ask_at: datetime | None = None
    unsent_reason: str | None = None


Report = StkCallback | StkAnswer | MatchedMoney | ReportedFailure | Expired


Result = Literal["completed", "failed", "mismatched", "confirming", "known", "waiting", "ignored", "refused"]


@dataclass(frozen=True)
class Complete:
    """The payment is paid. ``other_phone``: the payer's number, if not the requested one."""

    reported: ReportedMoney
    cause: Cause
    other_phone: str | None = None


@dataclass(frozen=True)
class LearnReceipt:
    """A paid payment gets its missing receipt."""

    reported: ReportedMoney
    cause: Cause
    other_phone: str | None = None


@dataclass(frozen=True)
class Fail:
    """The payment has failed."""

    report: ReportedFailure


@dataclass(frozen=True)
class Mismatch:
    """Reported money differs from the request and needs review."""

    of: str
    reported: ReportedMoney
    cause: Cause


@dataclass(frozen=True)
class Confirm:
    """Query M-Pesa now. ``reported``: the claim to store until it answers."""

    reported: ReportedMoney | None
    within: timedelta


@dataclass(frozen=True)
class DropClaim:
    """M-Pesa answered about the stored claim. ``refuted``: an answer that contradicts it."""

    refuted: str | None = None


@dataclass(frozen=True)
class LearnHandle:
    """The callback at the payment's own address names its push."""

    checkout_request_id: str
    merchant_request_id: str | None


@dataclass(frozen=True)
class Ignore:
    """Nothing changes. ``waiting``: decided again after the stored claim."""

    result: Literal["known", "mismatched", "waiting", "ignored"] = "ignored"


@dataclass(frozen=True)
class Refuse:
    """The report belongs to another address."""

    reason: str


Decision = Complete | LearnReceipt | Fail | Mismatch | Confirm | DropClaim | LearnHandle | Ignore | Refuse


def decide(payment: Payment, report: Report, rules: Rules) -> tuple[Decision, ...]:
    """Return the decisions on a report, in the order of their writes."""
    match report:
        case StkCallback():
            return _decide_callback(payment, report, rules)
        case StkAnswer(outcome):
            return _decide_answer(payment, outcome, rules)
        case MatchedMoney(verdict, reported, cause):
            return _decide_money(payment, verdict, reported, cause)
        case ReportedFailure():
            return (_decide_failure(payment, report),)
        case Expired():
            return _decide_time_up(payment, report)


_RESULTS: dict[type[Decision], Result] = {
    Complete: "completed",
    LearnReceipt: "known",
    Fail: "failed",
    Mismatch: "mismatched",
    Confirm: "confirming",
    Refuse: "refused",
}


def result_of(decisions: tuple[Decision, ...]) -> Result:
    for decision in decisions:
        result = decision.result if isinstance(decision, Ignore) else _RESULTS.get(type(decision))
        if result is not None:
            return result
    return "ignored"


def as_mismatch(decisions: tuple[Decision, ...], of: str) -> tuple[Decision, ...]:
    """The money belongs to another payment, or was returned: it cannot pay twice."""
    return tuple(
        Mismatch(of, one.reported, one.cause) if isinstance(one, Complete | LearnReceipt) else one for one in decisions
    )


def _decide_callback(  # noqa: PLR0911 - one return for each rule
    payment: Payment, report: StkCallback, rules: Rules
) -> tuple[Decision, ...]:
    result = report.result
    if result.merchant_id and (payment.merchant_id, payment.env) != (result.merchant_id, result.env):
        return (Refuse("this callback is about a payment of another merchant or env"),)
    evidence, outcome = read_callback(result), stk_outcome(result.result_code, result.result_desc)
    reported = reported_money(evidence, code=result.result_code, text=result.result_desc)
    if not names_payment(evidence, payment):
        if not outcome.is_paid or not result.subject_id or report.names_another:
            return (Refuse(_ANOTHER),)
        # Money at a payment's own address is never rejected.
        return _decide_money(payment, judge_other_push(evidence, payment, rules), reported, Cause.CALLBACK)
    learnt = _learnt(payment, result, outcome)
    if outcome.is_paid:
        verdict = judge(evidence, (payment,), rules=rules)
        if not isinstance(verdict, verdicts.Confirm):
            return (*learnt, *_decide_money(payment, verdict, reported, Cause.CALLBACK))
        return (*learnt, Confirm(reported, rules.confirm_within) if payment.claim is None else Ignore("waiting"))
    if evidence.proof is Proof.NONE:
        # The sender is unproven.
        return (*learnt, Confirm(None, rules.confirm_within))
    if payment.is_open and has_receipt_of_unknown(result, outcome):
        # An unknown code, but a receipt: money moved.
        return (*learnt, *_decide_money(payment, _unconfirmed(payment), reported, Cause.CALLBACK))
    if outcome.is_pending:
        return (*learnt, Ignore())
    failure = ReportedFailure(
        code=result.result_code,
        text=result.result_desc,
        reason=outcome.failure_reason,
        cause=Cause.CALLBACK,
        is_final=outcome.is_final,
    )
    return (*learnt, _decide_failure(payment, failure))


def _learnt(payment: Payment, result: StkResulted, outcome: Outcome) -> tuple[LearnHandle, ...]:
    reported, known = result.checkout_request_id, payment.checkout_request_id
    # After an erasure the stored id is a digest, which cannot be queried.
    is_erased = outcome.is_paid and reported != known and payment.status == Status.FAILED.value
    if not reported or not (known is None or is_erased):
        return ()
    return (LearnHandle(reported, result.merchant_request_id if known is None else None),)


def _decide_answer(payment: Payment, outcome: Outcome, rules: Rules) -> tuple[Decision, ...]:
    claim, handle = payment.claim, Handle(payment.payment_id, payment.checkout_request_id)
    if not outcome.is_paid:
        failure = ReportedFailure(
            code=outcome.code, text=outcome.meaning, reason=outcome.failure_reason, cause=Cause.STK_QUERY
        )
        dropped = () if claim is None else (DropClaim(f"M-Pesa says: {outcome.meaning}"),)
        return (*dropped, _decide_failure(replace(payment, claim=None), failure))
    if claim is None or not claim.is_proven:
        reported, cause = ReportedMoney(code=outcome.code, text=outcome.meaning), Cause.STK_QUERY
        evidence = Evidence(source=Source.STK_QUERY, proof=Proof.ANSWER, handle=handle)
    else:
        reported, cause = claim, Cause.CALLBACK
        evidence = Evidence(
            source=Source.STK_CALLBACK,
            proof=Proof.CONFIRMED,
            handle=handle,
            receipt=claim.receipt,
            amount=read_amount(claim.amount, claim.amount_text),
            payer=claim.phone,
        )
    money = _decide_money(payment, judge(evidence, (payment,), rules=rules), reported, cause)
    return money if claim is None else (DropClaim(), *money)


def _decide_money(payment: Payment, verdict: Verdict, reported: ReportedMoney, cause: Cause) -> tuple[Decision, ...]:
    decision = _decide_verdict(payment, verdict, reported, cause)
    claim = payment.claim
    if decision == Ignore() or claim is None or not claim.is_proven or claim.receipt in {None, reported.receipt}:
        return (decision,)
    # The payer may have paid twice.
    return (decision, Mismatch("unconfirmed", claim, Cause.CALLBACK))


def _decide_verdict(  # noqa: PLR0911 - one return for each verdict
    payment: Payment, verdict: Verdict, reported: ReportedMoney, cause: Cause
) -> Decision:
    match verdict:
        case verdicts.AlreadyKnown():
            return Ignore("known")
        case verdicts.Mismatch(is_new=False):
            return Ignore("mismatched")
        case verdicts.Mismatch(of=of):
            return Mismatch(of, reported, cause)
        case verdicts.PaidBy(is_other_payer=is_other):
            other_phone = reported.phone if is_other else None
            has_receipt = reported.receipt is not None
            is_final = payment.outcome_is_final
            if is_transition_allowed(
                Status(payment.status), Status.COMPLETED, has_receipt=has_receipt, is_final=is_final
            ):
                return Complete(reported, cause, other_phone)
            if has_receipt and payment.receipt is None and payment.status in _PAID:
                return LearnReceipt(reported, cause, other_phone)
            return Ignore("known")
        case _:
            return Ignore()


def _decide_failure(payment: Payment, failure: ReportedFailure) -> Decision:
    is_free = payment.mismatch is None and payment.claim is None
    if is_free and is_transition_allowed(Status(payment.status), Status.FAILED, has_receipt=False):
        return Fail(failure)
    return Ignore()


def unsent_text(reason: str | None) -> str:
    return f"{UNSENT}: {reason}" if reason else UNSENT


def _decide_time_up(payment: Payment, report: Expired) -> tuple[Decision, ...]:
    if payment.claim is not None:
        # M-Pesa neither confirmed nor denied the claim.
        return (DropClaim(), Mismatch("unconfirmed", payment.claim, Cause.EXPIRY))
    is_unsent = payment.charge in {Charge.READY.value, Charge.RELEASED.value}
    failure = ReportedFailure(
        code="unsent" if is_unsent else "expired",
        text=unsent_text(report.unsent_reason) if is_unsent else EXPIRED,
        reason="not_sent" if is_unsent else "expired",
        cause=Cause.EXPIRY,
        step="expired",
        is_final=is_unsent,
        due_at=None if is_unsent or payment.checkout_request_id is None else report.ask_at,
    )
    return (_decide_failure(payment, failure),)


def _unconfirmed(payment: Payment) -> verdicts.Mismatch:
    return verdicts.Mismatch(payment.payment_id, "unconfirmed")
