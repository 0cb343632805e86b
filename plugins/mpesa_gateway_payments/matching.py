"""Pure decisions on reports of money; only ``judge`` links money to a payment."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from mpesa_gateway.erasure import matches_handle
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import PhoneMatch, compare
from mpesa_gateway_payments.evidence import (
    CLOCKS_DIFFER,
    Direction,
    Evidence,
    Proof,
    Receiver,
    Source,
    normalised,
)
from mpesa_gateway_payments.states import Status
from mpesa_gateway_payments.verdicts import (
    AlreadyKnown,
    Ambiguous,
    By,
    Confirm,
    Mismatch,
    NeedsQuery,
    NotAssignable,
    NotFound,
    NotIncoming,
    PaidBy,
    Payment,
    Rules,
    Transaction,
    Verdict,
)

_DEFAULT_RULES = Rules()

SHOWN_FOR = timedelta(hours=48)
"""Greatest age of a candidate payment at the time of its money."""

_OPEN = frozenset({Status.PENDING.value, Status.FAILED.value})
_PAYABLE = frozenset({*_OPEN, Status.COMPLETED.value})
_PAID = frozenset({Status.COMPLETED.value, Status.REVERSED.value, Status.PARTIALLY_REVERSED.value})
_LOOSE = frozenset({None, "phone", "unconfirmed", "returned"})
"""Mismatches of payments that may still be unpaid; others need review."""


def names_payment(evidence: Evidence, payment: Payment) -> bool:
    handle = evidence.handle
    if handle is None or handle.payment_id not in {None, payment.payment_id}:
        return False
    stated, known = handle.checkout_request_id, payment.checkout_request_id
    if stated is None or known is None:
        return handle.payment_id is not None
    return matches_handle(stated, known)


def judge(
    evidence: Evidence,
    payments: Sequence[Payment],
    transactions: Sequence[Transaction] = (),
    rules: Rules = _DEFAULT_RULES,
) -> Verdict:
    """Judge a report.

    ``payments`` are of all merchants of the receiver, in any order. Callers judge without locks first, and again with
    the payments locked. A report settles payments of its receiver only. A report that several receivers share settles
    nothing but a known receipt.
    """
    verdict = _judge(evidence, payments, transactions, rules)
    if not evidence.is_shared:
        return verdict
    if isinstance(verdict, PaidBy | Mismatch) and not any(
        one.payment_id == verdict.payment_id and one.receipt is not None and one.receipt == evidence.receipt
        for one in payments
    ):
        return Ambiguous((verdict.payment_id,))
    return verdict


def _judge(
    evidence: Evidence, payments: Sequence[Payment], transactions: Sequence[Transaction], rules: Rules
) -> Verdict:
    is_own_outgoing = evidence.receipt is not None and any(
        one.direction is Direction.OUT and one.receipt == evidence.receipt for one in transactions
    )
    if evidence.direction is Direction.OUT or is_own_outgoing:
        return NotIncoming()
    if evidence.handle is not None and evidence.source is Source.STATUS_QUERY:
        return _judge_answer(evidence, payments, rules)
    if evidence.handle is not None:
        return _judge_push(evidence, payments, rules)
    evidence = _with_known_reference(evidence, transactions)
    return _identified(evidence, payments, rules) or _judge_by_rule(evidence, payments, transactions, rules)


def _with_known_reference(evidence: Evidence, transactions: Sequence[Transaction]) -> Evidence:
    """Status answers never show the reference: another report of the receipt may."""
    if evidence.reference is not None or evidence.receipt is None:
        return evidence
    shown = sorted(one.reference for one in transactions if one.receipt == evidence.receipt and one.reference)
    return replace(evidence, reference=shown[0]) if shown else evidence


def _judge_push(evidence: Evidence, payments: Sequence[Payment], rules: Rules) -> Verdict:
    named = [payment for payment in payments if names_payment(evidence, payment)]
    if len(named) != 1:
        return NotIncoming() if payments else NotFound()
    (payment,) = named
    if evidence.receiver is not None and not _is_at(payment, evidence.receiver):
        return NotIncoming()
    return _accepted(evidence, payment, "push", rules)


def _judge_answer(  # noqa: PLR0911 - one return for each rule
    evidence: Evidence, payments: Sequence[Payment], rules: Rules
) -> Verdict:
    """The answer must state receipt, amount, payer and time to complete the payment."""
    payment = next((one for one in payments if names_payment(evidence, one)), None)
    if payment is None:
        return NotIncoming() if payments else NotFound()
    is_known = evidence.receipt is not None and evidence.receipt == payment.receipt
    if not is_known and contradicts(evidence, payment, except_for_amount=True):
        return NotIncoming()
    if evidence.direction is Direction.IN and evidence.amount not in {None, payment.amount}:
        return Mismatch(payment.payment_id, "amount", "receipt" if is_known else "push")
    if is_known or (payment.status in _PAID and evidence.receipt is None):
        return AlreadyKnown(payment.payment_id)
    is_whole = (
        evidence.direction is Direction.IN
        and not evidence.is_shared
        and evidence.receipt is not None
        and evidence.amount == payment.amount
        and bool(evidence.time)
        and _likeness(evidence.payer, payment) is not PhoneMatch.HIDDEN
    )
    if is_whole:
        return _accepted(evidence, payment, "push", rules)
    if payment.status == Status.FAILED.value and payment.failure_reason != "expired":
        # No further query follows.
        return Mismatch(payment.payment_id, "unconfirmed")
    return Ambiguous((payment.payment_id,))


def contradicts(evidence: Evidence, payment: Payment, *, except_for_amount: bool = False) -> bool:
    return (
        evidence.direction is Direction.OUT
        or (evidence.receiver is not None and not _is_at(payment, evidence.receiver))
        or (not except_for_amount and evidence.amount not in {None, payment.amount})
        or (evidence.payer is not None and _likeness(evidence.payer, payment) is PhoneMatch.OTHER)
        or evidence.is_impossible
        or not all(_is_after(at, payment, SHOWN_FOR) for at in evidence.time)
    )


def judge_other_push(evidence: Evidence, payment: Payment, rules: Rules = _DEFAULT_RULES) -> Verdict:
    """Judge a success at a payment's address that names another push.

    It completes the payment if it states the amount, a receipt and the payer.
    """
    is_whole = evidence.receipt is not None and evidence.amount == payment.amount and evidence.payer is not None
    if is_whole and _likeness(evidence.payer, payment) is not PhoneMatch.OTHER:
        verdict = _accepted(evidence, payment, "push", rules)
        if not isinstance(verdict, Confirm):
            return verdict
    return Mismatch(payment.payment_id, "unconfirmed")


def _identified(  # noqa: PLR0911 - one return for each rule
    evidence: Evidence, payments: Sequence[Payment], rules: Rules
) -> Verdict | None:
    """Judge money with a known receipt or our own reference; None for other money."""
    receiver, receipt = evidence.receiver, evidence.receipt
    is_in = evidence.direction is Direction.IN
    payments = sorted(payments, key=_by_id)
    if receipt is not None:
        for payment in payments:
            if payment.receipt == receipt:
                if receiver is not None and not _is_at(payment, receiver):
                    return NotIncoming()
                is_equal = not is_in or evidence.amount in {None, payment.amount}
                return (
                    AlreadyKnown(payment.payment_id) if is_equal else Mismatch(payment.payment_id, "amount", "receipt")
                )
        for payment in payments:
            # Another receiver's payment does not have the money: an unproven report named the receipt.
            if payment.received_receipt == receipt and is_in and receiver is not None and _is_at(payment, receiver):
                if payment.receipt is not None:
                    return Mismatch(payment.payment_id, payment.mismatch or "receipt", "receipt", is_new=False)
                return _accepted(evidence, payment, "receipt", rules)
    if receiver is None or (evidence.source is Source.STATUS_QUERY and not is_in):
        # A status answer names its receiver in the credit party.
        return NotIncoming()
    owner = _owner_of_reference(evidence, receiver, payments)
    if owner is None:
        return None
    if not is_in or evidence.amount is None or receipt is None:
        return Ambiguous((owner.payment_id,))
    # A second payment with a paid reference is a mismatch.
    return _accepted(evidence, owner, "reference", rules)


def _owner_of_reference(evidence: Evidence, receiver: Receiver, payments: Iterable[Payment]) -> Payment | None:
    """None if another payment with that reference can have the money: shops reuse references in retries."""
    reference = normalised(evidence.reference)
    alike = [one for one in payments if normalised(one.reference) == reference and _is_at(one, receiver)]
    owner = next((one for one in alike if one.reference_is_ours), None)
    if owner is None or any(one.payment_id != owner.payment_id and may_pay(evidence, one) for one in alike):
        return None
    return owner


def _judge_by_rule(
    evidence: Evidence, payments: Sequence[Payment], transactions: Sequence[Transaction], rules: Rules
) -> Verdict:
    shown = sorted((payment for payment in payments if may_pay(evidence, payment)), key=_by_id)
    if not shown:
        return NotFound()
    ids = tuple(payment.payment_id for payment in shown)
    fitting = [payment for payment in shown if _fits(evidence, payment, rules)]
    if len(fitting) == 1 and not any(_is_rival(one, evidence, fitting[0], rules) for one in transactions):
        return PaidBy(fitting[0].payment_id, "rule")
    is_whole = all(_likeness(evidence.payer, one) in {PhoneMatch.SAME, PhoneMatch.OTHER} for one in shown)
    if evidence.proof is Proof.WINDOW and not (is_whole and len(evidence.time) == 1):
        return NeedsQuery(ids)
    return Ambiguous(ids)


def _accepted(  # noqa: PLR0911 - one return for each rule
    evidence: Evidence, payment: Payment, by: By, rules: Rules
) -> Verdict:
    payment_id, amount, receipt = payment.payment_id, evidence.amount, evidence.receipt
    if evidence.proof is Proof.NONE and not payment.is_open:
        return AlreadyKnown(payment_id)
    is_other = evidence.payer is not None and _likeness(evidence.payer, payment) is PhoneMatch.OTHER
    if evidence.source is Source.STK_CALLBACK and payment.is_open:
        is_asked_for = amount == payment.amount and receipt is not None and not is_other
        if _wants_confirmation(evidence, payment, rules, is_asked_for=is_asked_for):
            can_be_asked = payment.checkout_request_id or (evidence.handle and evidence.handle.checkout_request_id)
            if payment.mismatch is None and can_be_asked:
                return Confirm(payment_id)
            return Mismatch(payment_id, "unconfirmed", by)
    if amount is not None and amount != payment.amount:
        return Mismatch(payment_id, "amount", by)
    if payment.receipt is not None and receipt not in {None, payment.receipt}:
        # The payer may have paid twice.
        return Mismatch(payment_id, "receipt", by)
    if payment.status in _PAID and (receipt is None or receipt == payment.receipt):
        return AlreadyKnown(payment_id)
    if payment.status == Status.FAILED.value and receipt is None and not _is_from_own_callback(evidence, payment):
        return Mismatch(payment_id, "unconfirmed", by)
    is_held = payment.mismatch not in {None, "phone"} and payment.is_open
    if is_held and (receipt is None or amount is None):
        # After an earlier mismatch, only a receipt with the right amount completes the payment.
        return Mismatch(payment_id, payment.mismatch or "", by, is_new=False)
    return PaidBy(payment_id, by, is_other)


def _wants_confirmation(evidence: Evidence, payment: Payment, rules: Rules, *, is_asked_for: bool) -> bool:
    if evidence.proof is Proof.CONFIRMED:
        return False
    if evidence.proof is Proof.NONE or rules.confirm == "always" or evidence.is_receipt_unread:
        # An unreadable receipt may be of other money: M-Pesa's own answer decides.
        return True
    if payment.failure_reason == "expired" and evidence.receipt is None:
        # M-Pesa has reported no outcome: its own answer decides.
        return True
    return rules.confirm == "mismatch" and not is_asked_for


def _is_from_own_callback(evidence: Evidence, payment: Payment) -> bool:
    is_asked = evidence.source is Source.STK_QUERY or evidence.proof is Proof.CONFIRMED
    return is_asked and not payment.outcome_is_final


def judge_choice(  # noqa: PLR0911 - one return for each rule
    evidence: Evidence,
    chosen: Payment,
    payments: Sequence[Payment],
    transactions: Sequence[Transaction] = (),
    rules: Rules = _DEFAULT_RULES,
    *,
    by_operator: bool = False,
) -> Verdict | NotAssignable:
    """Judge a report that a person assigns to ``chosen``.

    A merchant's choice must fit the report, and no other merchant's payment may fit. An operator's choice must not
    contradict the receiver, or the owner of the receipt or reference.
    """
    everything = [one for one in payments if one.payment_id != chosen.payment_id] + [chosen]
    verdict = judge(evidence, everything, transactions, rules)
    payment_id = chosen.payment_id
    if isinstance(verdict, NotIncoming):
        return NotAssignable(payment_id, "not_ours")
    if isinstance(verdict, PaidBy | AlreadyKnown | Mismatch):
        if verdict.payment_id == payment_id:
            return verdict
        if not by_operator or isinstance(verdict, AlreadyKnown) or verdict.by != "rule":
            return NotAssignable(payment_id, "another")
    if evidence.receiver is None or not _is_at(chosen, evidence.receiver):
        return NotAssignable(payment_id, "receiver")
    if chosen.receipt is not None:
        return NotAssignable(payment_id, "paid")
    owner = _owner_of_reference(evidence, evidence.receiver, everything)
    if isinstance(verdict, Ambiguous) and verdict.payment_ids != (payment_id,) and owner is not None:
        return NotAssignable(payment_id, "another")
    if not by_operator:
        if evidence.direction is not Direction.IN or not may_pay(evidence, chosen):
            return NotAssignable(payment_id, "differs")
        if any(one.merchant_id != chosen.merchant_id and may_pay(evidence, one) for one in everything):
            return NotAssignable(payment_id, "merchant")
    return _accepted(evidence, chosen, "hand", rules)


def with_part_of_statement(evidence: Evidence) -> Evidence:
    """Return the report for a statement not read to its end: only a receipt or our reference settles it."""
    return replace(evidence, proof=Proof.PAGE)


def _is_at(payment: Payment, receiver: Receiver) -> bool:
    return (payment.env, payment.shortcode) == (receiver.env, receiver.number)


def _by_id(payment: Payment) -> str:
    return payment.payment_id


def _likeness(payer: str | None, payment: Payment) -> PhoneMatch:
    if payer is None or payment.phone is None:
        return PhoneMatch.HIDDEN
    return compare(payer, payment.phone)


def may_pay(evidence: Evidence, payment: Payment) -> bool:
    """Absent facts contradict nothing."""
    receiver, reference = evidence.receiver, normalised(evidence.reference)
    return (
        receiver is not None
        and _is_at(payment, receiver)
        and isinstance(evidence.amount, Kes)
        and evidence.amount == payment.amount
        and payment.receipt is None
        and payment.phone is not None
        and payment.status in _PAYABLE
        and _likeness(evidence.payer, payment) is not PhoneMatch.OTHER
        and reference in {None, normalised(payment.reference)}
        and not evidence.is_impossible
        and (not evidence.time or any(_is_after(at, payment, SHOWN_FOR) for at in evidence.time))
    )


def may_own(evidence: Evidence, payment: Payment) -> bool:
    """True if the payment is, or may turn out to be, paid by this money."""
    is_unpaid = payment.status == Status.FAILED.value and (
        payment.outcome_is_final or payment.failure_reason != "expired"
    )
    return not is_unpaid and may_pay(evidence, payment)


def _fits(evidence: Evidence, payment: Payment, rules: Rules) -> bool:
    receiver = evidence.receiver
    if receiver is None or evidence.direction is not Direction.IN or evidence.receipt is None:
        return False
    if evidence.proof in {Proof.PAGE, Proof.NONE}:
        return False
    if payment.outcome_is_final or payment.mismatch not in _LOOSE:
        return False
    if not evidence.time or not all(_is_after(at, payment, rules.match_within) for at in evidence.time):
        return False
    has_reference = evidence.reference is not None
    # Status answers never show the reference; paybill statements always do.
    if not receiver.is_till and not has_reference and evidence.source is not Source.STATUS_QUERY:
        return False
    likeness = _likeness(evidence.payer, payment)
    return likeness is PhoneMatch.SAME or (likeness is PhoneMatch.PARTLY and has_reference and not receiver.is_till)


def _is_after(at: datetime, payment: Payment, within: timedelta) -> bool:
    return payment.created_at - CLOCKS_DIFFER <= at <= payment.created_at + within


def _is_rival(one: Transaction, evidence: Evidence, payment: Payment, rules: Rules) -> bool:
    return (
        one.receipt != evidence.receipt
        and one.direction is not Direction.OUT
        and (one.receiver is None or _is_at(payment, one.receiver))
        and one.amount in {None, payment.amount}
        and _likeness(one.payer, payment) is not PhoneMatch.OTHER
        and normalised(one.reference) in {None, normalised(payment.reference)}
        and (not one.time or any(_is_after(at, payment, rules.match_within) for at in one.time))
    )
