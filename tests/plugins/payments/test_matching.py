"""Protects the judge: the verdict about each report of money, in a table of cases and for generated reports."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpesa_gateway.daraja.wire import read_moments, read_payer
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.evidence import (
    Direction,
    Evidence,
    Handle,
    Proof,
    Receiver,
    Source,
    in_zone,
    normalised,
    possible_times,
    proven_zone,
    read_direction,
    read_kind,
)
from mpesa_gateway_payments.matching import judge, judge_choice
from mpesa_gateway_payments.verdicts import (
    AlreadyKnown,
    Ambiguous,
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

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOON = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
PAYBILL = Receiver("sandbox", "174379")
TILL = Receiver("sandbox", "5123456", is_till=True)
PHONE = "254711000001"
RECEIPT = "TKN4A1B2C3"
OWN = "ABCDEFGHJKLM"
DIGEST = sha256(PHONE.encode()).hexdigest()


def minutes(count: float) -> datetime:
    return NOON + timedelta(minutes=count)


def payment(**changes: Any) -> Payment:
    """A pending payment of KES 700 at the paybill, created at noon."""
    values: dict[str, Any] = {
        "payment_id": "pay_1",
        "merchant_id": "mer_1",
        "env": "sandbox",
        "shortcode": PAYBILL.number,
        "amount": 700,
        "phone": PHONE,
        "reference": "table 4",
        "reference_is_ours": False,
        "created_at": NOON,
        "status": "pending",
        "checkout_request_id": "ws_CO_1",
    }
    return Payment(**values | changes)


def line(**changes: Any) -> Evidence:
    """A line of the paybill's complete statement that states everything about that payment's money."""
    values: dict[str, Any] = {
        "source": Source.STATEMENT,
        "proof": Proof.WINDOW,
        "direction": Direction.IN,
        "receiver": PAYBILL,
        "receipt": RECEIPT,
        "reference": "table 4",
        "amount": Kes(700),
        "payer": PHONE,
        "time": (minutes(1),),
    }
    return Evidence(**values | changes)


def at_till(**changes: Any) -> Evidence:
    """The same line of a till, whose statement shows no reference."""
    return line(**{"receiver": TILL, "reference": None} | changes)


def status(**changes: Any) -> Evidence:
    """M-Pesa's result about a receipt, which never shows the reference."""
    return line(**{"source": Source.STATUS_QUERY, "proof": Proof.ANSWER, "reference": None} | changes)


def asked_about(**changes: Any) -> Evidence:
    """M-Pesa's result about the conversation of the payment's push."""
    return status(handle=Handle("pay_1"), **changes)


def callback(**changes: Any) -> Evidence:
    """A success at the address of the payment's push."""
    values: dict[str, Any] = {
        "source": Source.STK_CALLBACK,
        "proof": Proof.ADDRESS,
        "receipt": RECEIPT,
        "handle": Handle("pay_1", "ws_CO_1"),
        "amount": Kes(700),
        "payer": PHONE,
    }
    return Evidence(**values | changes)


def query(**changes: Any) -> Evidence:
    """M-Pesa's 0 to the STK query."""
    values: dict[str, Any] = {
        "source": Source.STK_QUERY,
        "proof": Proof.ANSWER,
        "handle": Handle("pay_1", "ws_CO_1"),
    }
    return Evidence(**values | changes)


def rival(**changes: Any) -> Transaction:
    """Another transaction of KES 700 at the paybill."""
    values: dict[str, Any] = {
        "receipt": "OTHER00001",
        "receiver": PAYBILL,
        "amount": 700,
        "payer": PHONE,
        "reference": "table 4",
        "time": (minutes(2),),
    }
    return Transaction(**values | changes)


P = payment()
TILL_PAYMENT = payment(shortcode=TILL.number, reference=OWN, reference_is_ours=True)
CANCELLED: dict[str, Any] = {"status": "failed", "outcome_is_final": True}
TIMED_OUT: dict[str, Any] = {"status": "failed"}
PAID: dict[str, Any] = {"status": "completed", "receipt": "FIRST00001"}
FIRST_OF_TWO = payment(reference=OWN, reference_is_ours=True)
SECOND_OF_TWO = payment(payment_id="pay_2", reference=OWN)
NAMED = payment(received_receipt=RECEIPT, mismatch="unconfirmed")
AT_TILL = payment(payment_id="pay_2", merchant_id="mer_2", shortcode=TILL.number)
BY_RULE = PaidBy("pay_1", "rule")
ONE = ("pay_1",)
BOTH = ("pay_1", "pay_2")

Case = tuple[str, Evidence, list[Payment], list[Transaction], Verdict]

CASES: list[Case] = [
    # -- direction: B1, B2, B3, B7
    ("B1 a payout", status(direction=Direction.OUT), [P], [], NotIncoming()),
    ("B2 no parties", status(direction=None), [P], [], NotIncoming()),
    ("B2 no receiver", status(receiver=None), [P], [], NotIncoming()),
    ("B3 our own reversal", line(), [P], [Transaction(receipt=RECEIPT, direction=Direction.OUT)], NotIncoming()),
    ("B3 by status", status(), [P], [Transaction(receipt=RECEIPT, direction=Direction.OUT)], NotIncoming()),
    ("B7 a reversal", line(direction=Direction.OUT), [payment(**CANCELLED)], [], NotIncoming()),
    ("B7 with our own reference", line(direction=Direction.OUT, reference=OWN), [TILL_PAYMENT], [], NotIncoming()),
    ("B7 an unknown kind", line(direction=None), [P], [], Ambiguous(ONE)),
    ("an unknown kind under our own reference", line(direction=None, reference=OWN),
     [payment(reference=OWN, reference_is_ours=True)], [], Ambiguous(ONE)),
    # -- the rule
    ("all of it at a paybill", line(), [P], [], BY_RULE),
    ("all of it at a till", at_till(), [TILL_PAYMENT], [], BY_RULE),
    ("all of it by status", status(), [P], [], BY_RULE),
    ("by status, and its line shows the reference", status(), [P], [rival(receipt=RECEIPT)], BY_RULE),
    ("by status, and its line shows another reference", status(), [P],
     [rival(receipt=RECEIPT, reference="table 5")], NotFound()),
    ("by its digest", at_till(payer=DIGEST), [TILL_PAYMENT], [], BY_RULE),
    ("three digits at a paybill", line(payer="2547****001"), [P], [], BY_RULE),
    ("three digits at a till", at_till(payer="2547****001"), [TILL_PAYMENT], [], NeedsQuery(ONE)),
    ("three digits by status", status(payer="2547****001"), [P], [], Ambiguous(ONE)),
    ("two digits", line(payer="2547*****01"), [P], [], NeedsQuery(ONE)),
    ("B4 no payer at a till", at_till(payer=None), [TILL_PAYMENT], [], NeedsQuery(ONE)),
    ("B4 hashed", at_till(payer="9f86d081884c7d65"), [replace(TILL_PAYMENT, **CANCELLED)], [], NeedsQuery(ONE)),
    ("B4 asked, and no more is shown", at_till(payer=None, proof=Proof.ANSWER), [TILL_PAYMENT], [], Ambiguous(ONE)),
    ("B4 another payer's digest", at_till(payer=sha256(b"254711000002").hexdigest()), [TILL_PAYMENT], [], NotFound()),
    ("another payer", line(payer="254711000002"), [P], [], NotFound()),
    ("another reference", line(reference="table 5"), [P], [], NotFound()),
    ("no reference at a paybill", line(reference=None), [P], [], Ambiguous(ONE)),
    ("B8 outer space", line(reference="x9"), [payment(reference="x9 ")], [], BY_RULE),
    ("B8 inner space, width and case", line(reference=" SHOP  \uff11"), [payment(reference="shop 1")], [], BY_RULE),
    ("another amount", line(amount=Kes(701)), [P], [], NotFound()),
    ("cents", line(amount="700.50"), [P], [], NotFound()),
    ("no amount", line(amount=None), [P], [], NotFound()),
    ("no receipt", line(receipt=None), [P], [], Ambiguous(ONE)),
    ("another env", line(receiver=Receiver("live", "174379")), [P], [], NotFound()),
    ("another receiver", line(receiver=Receiver("sandbox", "600000")), [P], [], NotFound()),
    ("two minutes before", line(time=(minutes(-2),)), [P], [], BY_RULE),
    ("three minutes before", line(time=(minutes(-3),)), [P], [], NotFound()),
    ("fifteen minutes after", line(time=(minutes(15),)), [P], [], BY_RULE),
    ("B6 sixteen minutes after", line(time=(minutes(16),)), [P], [], Ambiguous(ONE)),
    ("B6 hours after, cancelled", line(time=(minutes(300),)), [payment(**CANCELLED)], [], Ambiguous(ONE)),
    ("B6 at once, cancelled", line(), [payment(**CANCELLED)], [], Ambiguous(ONE)),
    ("two days after", line(time=(minutes(2881),)), [P], [], NotFound()),
    ("B5 before it was asked for", line(time=(minutes(-115),)), [payment(**CANCELLED)], [], NotFound()),
    ("no possible time", line(time=()), [P], [], NeedsQuery(ONE)),
    ("two readings", line(time=(minutes(-179), minutes(1))), [P], [], NeedsQuery(ONE)),
    ("timed out", line(), [payment(**TIMED_OUT)], [], BY_RULE),
    ("completed without receipt", line(), [payment(status="completed")], [], BY_RULE),
    ("paid already", line(), [payment(**PAID)], [], NotFound()),
    ("reversed", line(), [payment(status="reversed")], [], NotFound()),
    ("held for its amount", line(), [payment(mismatch="amount")], [], Ambiguous(ONE)),
    ("erased", line(), [payment(phone=None)], [], NotFound()),
    ("part of a statement", line(proof=Proof.PAGE), [P], [], Ambiguous(ONE)),
    ("two payments", line(), [P, payment(payment_id="pay_2", created_at=minutes(-5))], [], Ambiguous(BOTH)),
    ("another merchant's", line(), [P, payment(payment_id="pay_2", merchant_id="mer_2")], [], Ambiguous(BOTH)),
    ("a cancelled one beside it", line(), [P, payment(payment_id="pay_2", **CANCELLED)], [], BY_RULE),
    ("other money", line(), [P], [rival()], Ambiguous(ONE)),
    ("other money of a hidden payer", line(), [P], [rival(payer=None)], Ambiguous(ONE)),
    ("other money of another payer", line(), [P], [rival(payer="254711000002")], BY_RULE),
    ("other money of another reference", line(), [P], [rival(reference="table 5")], BY_RULE),
    ("other money of another day", line(), [P], [rival(time=(minutes(900),))], BY_RULE),
    ("other money that went out", line(), [P], [rival(direction=Direction.OUT)], BY_RULE),
    ("itself", line(), [P], [rival(receipt=RECEIPT)], BY_RULE),
    # -- identity
    ("a known receipt", line(payer=None, time=()), [payment(**PAID | {"receipt": RECEIPT})], [], AlreadyKnown("pay_1")),
    ("of another amount", line(amount=Kes(1)), [payment(**PAID | {"receipt": RECEIPT})], [],
     Mismatch("pay_1", "amount", "receipt")),
    ("our own reference", line(reference=OWN.lower(), payer=None, time=()),
     [payment(reference=OWN, reference_is_ours=True, **CANCELLED)], [], PaidBy("pay_1", "reference")),
    ("on a part of the statement", line(reference=OWN, proof=Proof.PAGE),
     [payment(reference=OWN, reference_is_ours=True)], [], PaidBy("pay_1", "reference")),
    ("by another payer", line(reference=OWN, payer="254799999999"),
     [payment(reference=OWN, reference_is_ours=True)], [], PaidBy("pay_1", "reference", is_other_payer=True)),
    ("with another amount", line(reference=OWN, amount=Kes(5)),
     [payment(reference=OWN, reference_is_ours=True)], [], Mismatch("pay_1", "amount", "reference")),
    ("paid already, under our reference", line(reference=OWN),
     [payment(reference=OWN, reference_is_ours=True, **PAID)], [], Mismatch("pay_1", "receipt", "reference")),
    ("paid already, under our reference, another amount", line(reference=OWN, amount=Kes(5)),
     [payment(reference=OWN, reference_is_ours=True, **PAID)], [], Mismatch("pay_1", "amount", "reference")),
    ("paid already, under our reference, an unreadable amount", line(reference=OWN, amount="KSh 700"),
     [payment(reference=OWN, reference_is_ours=True, **PAID)], [], Mismatch("pay_1", "amount", "reference")),
    ("sent back, under our reference", line(reference=OWN), [payment(reference=OWN, reference_is_ours=True,
     **PAID | {"status": "reversed"})], [], Mismatch("pay_1", "receipt", "reference")),
    ("paid already, under our reference, an unknown kind", line(reference=OWN, direction=None),
     [payment(reference=OWN, reference_is_ours=True, **PAID)], [], Ambiguous(ONE)),
    ("paid already, under our reference, no amount", line(reference=OWN, amount=None),
     [payment(reference=OWN, reference_is_ours=True, **PAID)], [], Ambiguous(ONE)),
    ("paid already with it, under our reference", line(reference=OWN), [payment(reference=OWN, reference_is_ours=True,
     **PAID | {"receipt": RECEIPT})], [], AlreadyKnown("pay_1")),
    ("told of already, under our reference", line(reference=OWN), [payment(reference=OWN, reference_is_ours=True,
     received_receipt=RECEIPT, mismatch="receipt", **PAID)], [], Mismatch("pay_1", "receipt", "receipt", is_new=False)),
    ("our own reference without a receipt", line(reference=OWN, receipt=None),
     [payment(reference=OWN, reference_is_ours=True)], [], Ambiguous(ONE)),
    ("at another receiver", line(reference=OWN, receiver=TILL),
     [payment(reference=OWN, reference_is_ours=True)], [], NotFound()),
    # -- a receipt that a payment of another receiver has, or that an unproven report named for it
    ("a known receipt at another receiver", at_till(), [payment(**PAID | {"receipt": RECEIPT})], [], NotIncoming()),
    ("of another amount at another receiver", at_till(amount=Kes(1)), [payment(**PAID | {"receipt": RECEIPT})], [],
     NotIncoming()),
    ("a known receipt at another receiver, one fits", at_till(), [payment(**PAID | {"receipt": RECEIPT}), AT_TILL], [],
     NotIncoming()),
    ("a named receipt", status(), [NAMED], [], PaidBy("pay_1", "receipt")),
    ("a named receipt at another receiver", status(receiver=TILL), [NAMED], [], NotFound()),
    ("a named receipt at another receiver, another amount", status(receiver=TILL, amount=Kes(900)), [NAMED], [],
     NotFound()),
    ("a named receipt at another receiver, one fits", status(receiver=TILL), [NAMED, AT_TILL], [],
     PaidBy("pay_2", "rule")),
    ("a named receipt on another receiver's statement", at_till(), [NAMED, AT_TILL], [], PaidBy("pay_2", "rule")),
    # -- a reference of our own, which the shop has reused for a later payment
    ("shared, the first cancelled", line(reference=OWN), [replace(FIRST_OF_TWO, **CANCELLED), SECOND_OF_TWO], [],
     PaidBy("pay_2", "rule")),
    ("shared, the first paid", line(reference=OWN), [replace(FIRST_OF_TWO, **PAID), SECOND_OF_TWO], [],
     PaidBy("pay_2", "rule")),
    ("shared, the second paid without a receipt", line(reference=OWN),
     [replace(FIRST_OF_TWO, **CANCELLED), replace(SECOND_OF_TWO, status="completed")], [], PaidBy("pay_2", "rule")),
    ("shared, on a part of the statement", line(reference=OWN, proof=Proof.PAGE),
     [replace(FIRST_OF_TWO, **CANCELLED), SECOND_OF_TWO], [], Ambiguous(BOTH)),
    ("shared, both open", line(reference=OWN), [FIRST_OF_TWO, SECOND_OF_TWO], [], Ambiguous(BOTH)),
    ("shared, both open, another amount", line(reference=OWN, amount=Kes(900)),
     [FIRST_OF_TWO, replace(SECOND_OF_TWO, amount=900)], [], PaidBy("pay_2", "rule")),
    ("shared, another merchant's", line(reference=OWN),
     [replace(FIRST_OF_TWO, **CANCELLED), replace(SECOND_OF_TWO, merchant_id="mer_2")], [],
     PaidBy("pay_2", "rule")),
    ("shared, of another case", line(reference=OWN),
     [replace(FIRST_OF_TWO, **CANCELLED), replace(SECOND_OF_TWO, reference=OWN.lower())], [],
     PaidBy("pay_2", "rule")),
    ("shared, of another payer", line(reference=OWN), [FIRST_OF_TWO, replace(SECOND_OF_TWO, phone="254799999999")], [],
     PaidBy("pay_1", "reference")),
    ("shared, the second paid", line(reference=OWN), [FIRST_OF_TWO, replace(SECOND_OF_TWO, **PAID)], [],
     PaidBy("pay_1", "reference")),
    ("shared, the second at another receiver", line(reference=OWN),
     [FIRST_OF_TWO, replace(SECOND_OF_TWO, shortcode="600000")], [],
     PaidBy("pay_1", "reference")),
    # -- our own push
    ("a callback", callback(), [P], [], PaidBy("pay_1", "push")),
    ("without metadata", callback(receipt=None, amount=None, payer=None), [P], [], PaidBy("pay_1", "push")),
    ("of another amount", callback(amount=Kes(5)), [P], [], Mismatch("pay_1", "amount")),
    ("of no number", callback(amount="x"), [P], [], Mismatch("pay_1", "amount")),
    ("of another push", callback(handle=Handle("pay_1", "ws_CO_2")), [P], [], NotIncoming()),
    ("at another address", callback(handle=Handle("pay_2", "ws_CO_1")), [P], [], NotIncoming()),
    ("from a listed address", callback(proof=Proof.LISTED, handle=Handle(None, "ws_CO_1")), [P], [],
     PaidBy("pay_1", "push")),
    ("a receipt that cannot be read", callback(receipt=None, is_receipt_unread=True), [P], [], Confirm("pay_1")),
    ("such a receipt, held", callback(receipt=None, is_receipt_unread=True), [payment(mismatch="amount")], [],
     Mismatch("pay_1", "unconfirmed", "push")),
    ("from anywhere", callback(proof=Proof.NONE, handle=Handle(None, "ws_CO_1")), [P], [], Confirm("pay_1")),
    ("from anywhere, failed", callback(proof=Proof.NONE, handle=Handle(None, "ws_CO_1")), [payment(**CANCELLED)], [],
     Confirm("pay_1")),
    ("from anywhere, completed", callback(proof=Proof.NONE), [payment(status="completed")], [], AlreadyKnown("pay_1")),
    ("from anywhere, another receipt", callback(proof=Proof.NONE), [payment(**PAID)], [], AlreadyKnown("pay_1")),
    ("confirmed", callback(proof=Proof.CONFIRMED), [P], [], PaidBy("pay_1", "push")),
    ("late, with a receipt", callback(), [payment(**CANCELLED)], [], PaidBy("pay_1", "push")),
    ("late, without", callback(receipt=None), [payment(**CANCELLED)], [], Mismatch("pay_1", "unconfirmed")),
    ("late, without, not final", callback(receipt=None), [payment(**TIMED_OUT)], [],
     Mismatch("pay_1", "unconfirmed")),
    ("late, without, expired", callback(receipt=None), [payment(**TIMED_OUT, failure_reason="expired")], [],
     Confirm("pay_1")),
    ("twice", callback(), [payment(**PAID | {"receipt": RECEIPT})], [], AlreadyKnown("pay_1")),
    ("a second receipt", callback(), [payment(**PAID)], [], Mismatch("pay_1", "receipt")),
    ("the first receipt", callback(), [payment(status="completed")], [], PaidBy("pay_1", "push")),
    ("held", callback(receipt=None), [payment(mismatch="amount")], [],
     Mismatch("pay_1", "amount", is_new=False)),
    ("held, with all of it", callback(), [payment(mismatch="amount")], [], PaidBy("pay_1", "push")),
    ("0 by STK query", query(), [P], [], PaidBy("pay_1", "push")),
    ("0 of an expired payment", query(), [payment(**TIMED_OUT)], [], PaidBy("pay_1", "push")),
    ("0 of a cancelled one", query(), [payment(**CANCELLED)], [], Mismatch("pay_1", "unconfirmed")),
    ("0 of a paid one", query(), [payment(**PAID)], [], AlreadyKnown("pay_1")),
    ("B9 another push", query(handle=Handle("pay_1", "ws_CO_2")), [P], [], NotIncoming()),
    ("no payment", query(), [], [], NotFound()),
    # -- status queries by conversation
    ("by its conversation", status(handle=Handle("pay_1")), [P], [], PaidBy("pay_1", "push")),
    ("three digits by its conversation", asked_about(payer="2547****001"), [P], [], PaidBy("pay_1", "push")),
    ("an hour later", asked_about(time=(minutes(60),)), [P], [], PaidBy("pay_1", "push")),
    ("beside another payment", asked_about(), [P, payment(payment_id="pay_2")], [], PaidBy("pay_1", "push")),
    ("without parties", asked_about(direction=None), [P], [], Ambiguous(ONE)),
    ("without a time", asked_about(time=()), [P], [], Ambiguous(ONE)),
    ("without a payer", asked_about(payer=None), [P], [], Ambiguous(ONE)),
    ("without an amount", asked_about(amount=None), [P], [], Ambiguous(ONE)),
    ("without a receipt", asked_about(receipt=None), [P], [], Ambiguous(ONE)),
    ("without a receipt, expired", asked_about(receipt=None), [payment(**TIMED_OUT, failure_reason="expired")], [],
     Ambiguous(ONE)),
    ("to somebody else", asked_about(direction=Direction.OUT), [P], [], NotIncoming()),
    ("to another receiver", asked_about(receiver=TILL), [P], [], NotIncoming()),
    ("from somebody else", asked_about(payer="254722000001"), [P], [], NotIncoming()),
    ("years before", asked_about(time=(minutes(-1_000_000),)), [P], [], NotIncoming()),
    ("before it was asked for", asked_about(time=(minutes(-3),)), [P], [], NotIncoming()),
    ("three days later", asked_about(time=(minutes(4320),)), [P], [], NotIncoming()),
    ("at an impossible time", asked_about(time=(), is_impossible=True), [P], [], NotIncoming()),
    ("of another amount, by its conversation", asked_about(amount=Kes(5)), [P], [], Mismatch("pay_1", "amount")),
    ("of another amount, from nobody", asked_about(amount=Kes(5), direction=None), [P], [], Ambiguous(ONE)),
    ("paid with it already", asked_about(), [payment(**PAID | {"receipt": RECEIPT})], [], AlreadyKnown("pay_1")),
    ("paid with other money", asked_about(), [payment(**PAID)], [], Mismatch("pay_1", "receipt")),
    ("its first receipt", asked_about(), [payment(status="completed")], [], PaidBy("pay_1", "push")),
    ("an impossible time on a statement", line(time=(), is_impossible=True), [P], [], NotFound()),
    ("an impossible time under our own reference", line(reference=OWN, time=(), is_impossible=True),
     [payment(reference=OWN, reference_is_ours=True)], [], PaidBy("pay_1", "reference")),
    ("failed and no receipt", status(handle=Handle("pay_1"), receipt=None), [payment(**TIMED_OUT)], [],
     Mismatch("pay_1", "unconfirmed")),
]  # fmt: skip


@pytest.mark.parametrize(("evidence", "payments", "transactions", "verdict"), [
    pytest.param(*case, id=name) for name, *case in CASES
])  # fmt: skip
def test_judge_table(
    evidence: Evidence, payments: list[Payment], transactions: list[Transaction], verdict: Verdict
) -> None:
    assert judge(evidence, payments, transactions) == verdict


@pytest.mark.parametrize(
    ("confirm", "report", "verdict"),
    [
        ("never", callback(), PaidBy("pay_1", "push")),
        ("mismatch", callback(), PaidBy("pay_1", "push")),
        ("mismatch", callback(receipt=None), Confirm("pay_1")),
        ("mismatch", callback(amount=Kes(1)), Confirm("pay_1")),
        ("mismatch", callback(payer="254799999999"), Confirm("pay_1")),
        ("always", callback(), Confirm("pay_1")),
        ("always", line(), BY_RULE),
    ],
)
def test_judge_confirm_setting_decides_which_callbacks_are_confirmed(
    confirm: Any, report: Evidence, verdict: Verdict
) -> None:
    assert judge(report, [P], rules=Rules(confirm=confirm)) == verdict


def test_judge_match_within_limits_the_rule() -> None:
    assert judge(line(time=(minutes(59),)), [P], rules=Rules(match_within=timedelta(minutes=60))) == BY_RULE
    assert judge(line(time=(minutes(61),)), [P], rules=Rules(match_within=timedelta(minutes=60))) == Ambiguous(ONE)


# -- choices of merchants and operators -----------------------------------------------------------------------------

THEIRS = payment(payment_id="pay_2", merchant_id="mer_2")
CHOICES: list[tuple[str, Evidence, Payment, list[Payment], Verdict | NotAssignable, Verdict | NotAssignable]] = [
    ("one of two of mine", line(), P, [payment(payment_id="pay_2")], PaidBy("pay_1", "hand"),
     PaidBy("pay_1", "hand")),
    ("no payer", line(payer=None), P, [], PaidBy("pay_1", "hand"), PaidBy("pay_1", "hand")),
    ("hours later", line(time=(minutes(300),)), payment(**CANCELLED), [], PaidBy("pay_1", "hand"),
     PaidBy("pay_1", "hand")),
    ("C1 it fits another's too", line(), P, [THEIRS], NotAssignable("pay_1", "merchant"), PaidBy("pay_1", "hand")),
    ("C1 it has another's own reference", line(reference=OWN), P,
     [replace(THEIRS, reference=OWN, reference_is_ours=True)], NotAssignable("pay_1", "another"),
     NotAssignable("pay_1", "another")),
    ("C1 it is another's by the rule", line(reference="table 5"), P, [replace(THEIRS, reference="table 5")],
     NotAssignable("pay_1", "another"), PaidBy("pay_1", "hand")),
    ("C1 another has its receipt", line(), P, [replace(THEIRS, status="completed", receipt=RECEIPT)],
     NotAssignable("pay_1", "another"),
     NotAssignable("pay_1", "another")),
    ("own reference of a paid one", line(reference=OWN), P, [replace(THEIRS, reference=OWN, reference_is_ours=True,
     **PAID)], NotAssignable("pay_1", "another"),
     NotAssignable("pay_1", "another")),
    ("a shared own reference", line(reference=OWN), SECOND_OF_TWO, [FIRST_OF_TWO], PaidBy("pay_2", "hand"),
     PaidBy("pay_2", "hand")),
    ("another reference", line(reference="table 5"), P, [], NotAssignable("pay_1", "differs"), PaidBy("pay_1", "hand")),
    ("another payer", line(payer="254799999999"), P, [], NotAssignable("pay_1", "differs"),
     PaidBy("pay_1", "hand", is_other_payer=True)),
    ("another amount", line(amount=Kes(5)), P, [], NotAssignable("pay_1", "differs"),
     Mismatch("pay_1", "amount", "hand")),
    ("an unknown kind", line(direction=None), P, [], NotAssignable("pay_1", "differs"), PaidBy("pay_1", "hand")),
    ("a reversal", line(direction=Direction.OUT), P, [], NotAssignable("pay_1", "not_ours"),
     NotAssignable("pay_1", "not_ours")),
    ("another receiver", line(receiver=TILL), P, [], NotAssignable("pay_1", "receiver"),
     NotAssignable("pay_1", "receiver")),
    ("paid otherwise", line(), payment(**PAID), [], NotAssignable("pay_1", "paid"), NotAssignable("pay_1", "paid")),
]  # fmt: skip


@pytest.mark.parametrize(("report", "chosen", "others", "for_merchant", "for_operator"), [
    pytest.param(*case, id=name) for name, *case in CHOICES
])  # fmt: skip
def test_judge_choice_table(
    report: Evidence, chosen: Payment, others: list[Payment], for_merchant: Verdict, for_operator: Verdict
) -> None:
    assert judge_choice(report, chosen, others) == for_merchant
    assert judge_choice(report, chosen, others, by_operator=True) == for_operator


# -- reading a report -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "direction"),
    [
        ("c2b-pay-bill-debit", Direction.IN),
        ("C2B-BUY-GOODS-DEBIT", Direction.IN),
        ("Pay Bill", Direction.IN),
        ("Customer Merchant Payment", Direction.IN),
        ("c2b-pay-bill-reversal", Direction.OUT),
        ("Transaction Reversal", Direction.OUT),
        ("Business Payment to Customer via API", Direction.OUT),
        ("b2c-payout", Direction.OUT),
        ("Pay Utility Charge", Direction.OUT),
        ("something new", None),
        ("", None),
        (None, None),
    ],
)
def test_read_kind_returns_the_direction(kind: str | None, direction: Direction | None) -> None:
    assert read_kind(kind)[0] is direction


@pytest.mark.parametrize(
    ("creditors", "direction"),
    [
        (["174379 - SHOP"], Direction.IN),
        (["174379"], Direction.IN),
        ([" 600638 - STORE"], Direction.IN),
        (["254799000001 - SOMEBODY"], Direction.OUT),
        (["555555 - OTHER SHOP"], Direction.OUT),
        (["1743790 - OTHER"], Direction.OUT),
        (["SHOP"], Direction.OUT),
        (["174379 - SHOP", "555555 - OTHER SHOP"], Direction.OUT),
        ([], None),
    ],
)
def test_read_direction_is_in_only_for_our_receiver(creditors: list[str], direction: Direction | None) -> None:
    assert read_direction(creditors, {"174379", "600638"}) is direction


@pytest.mark.parametrize(
    ("debtors", "amount", "direction"),
    [
        (["254711000001 - JANE"], "700.00", Direction.IN),
        (["254711000001 - JANE"], "0.00", Direction.IN),
        (["254711000001 - JANE"], "-0", Direction.IN),
        (["555555 - OTHER SHOP"], None, Direction.IN),
        ([], "x-", Direction.IN),
        (["174379 - SHOP"], "700.00", Direction.OUT),
        (["174379 - SHOP", " 600638 - STORE"], "700.00", Direction.OUT),
        (["174379 - SHOP", "254711000001 - JANE"], "700.00", Direction.IN),
        (["254711000001 - JANE"], "-700.00", Direction.OUT),
        (["254711000001 - JANE"], " \u2212700 ", Direction.OUT),
        (["254711000001 - JANE"], "(700)", Direction.OUT),
        (["254711000001 - JANE"], "700-", Direction.OUT),
    ],
)
def test_read_direction_of_our_own_or_negative_money_is_out(
    debtors: list[str], amount: str | None, direction: Direction
) -> None:
    assert read_direction(["174379 - SHOP"], {"174379", "600638"}, debtors=debtors, amount=amount) is direction


@pytest.mark.parametrize(
    ("parties", "payer"),
    [
        (["254711000001 - JANE"], "254711000001"),
        (["555555 - SHOP", "0711000001 - JANE"], "254711000001"),
        (["254711000001 - JANE", "+254711000001 - JANE DOE"], "254711000001"),
        (["254711000001 - JANE", "254722000001 - JOHN"], None),
        (["254711000001 - JANE", "2547****002 - JOHN"], None),
        (["555555 - SHOP"], None),
        ([], None),
    ],
)
def test_read_payer_of_two_numbers_is_none(parties: list[str], payer: str | None) -> None:
    assert read_payer(parties) == payer


@FAST
@given(st.datetimes(min_value=datetime(2024, 1, 1), max_value=datetime(2030, 1, 1)))  # noqa: DTZ001 - the text has no zone
def test_read_moments_without_zone_is_eat_and_with_z_is_both(at: datetime) -> None:
    text = at.replace(microsecond=0).isoformat(sep=" ")
    (alone,) = read_moments(text)
    both = read_moments(text + "Z")
    assert both == (alone, alone + timedelta(hours=3))
    assert read_moments(text + "+03:00") == (alone,)
    # A reading in the future, or outside the requested window, is impossible.
    assert possible_times(both, now=alone + timedelta(hours=1)) == (alone,)
    assert possible_times(both, now=both[1], since=both[1] - timedelta(hours=2)) == (both[1],)
    assert possible_times(both, now=both[1]) == both
    assert possible_times(both, now=both[1] + timedelta(hours=9), since=both[1] + timedelta(hours=1)) == ()
    # The time of a known payment proves the zone.
    minute = timedelta(minutes=1)
    assert proven_zone(both, alone - minute, alone + minute) == "eat"
    assert proven_zone(both, both[1] - minute, both[1] + minute) == "utc"
    assert proven_zone(both, alone - timedelta(hours=9), alone - timedelta(hours=8)) is None
    # Here the payment was known so late that the wrong reading could match too.
    assert proven_zone(both, alone - minute, alone + timedelta(minutes=60)) is None
    assert proven_zone((alone,), alone - minute, alone + minute) is None
    assert (in_zone(both, "eat"), in_zone(both, "utc"), in_zone(both, None)) == (both[:1], both[1:], both)


def test_normalised_ignores_space_width_and_case() -> None:
    assert normalised(" Shop \t 1 ") == normalised("SHOP 1") == normalised("\uff33hop\u00a01") == "shop 1"
    assert normalised(" ") is normalised("") is normalised(None) is None


# -- properties for generated reports -------------------------------------------------------------------------------

REFERENCES = st.sampled_from(["table 4", "TABLE  4 ", "table 5", OWN, ""])
PHONES = st.sampled_from([PHONE, "254711000002", "254799999001"])
SHOWN = st.sampled_from([None, PHONE, "0711000001", "2547****001", "2547*****01", "*****", DIGEST, "254799999001"])
TIMES = st.lists(st.integers(-200, 200), max_size=2).map(lambda found: tuple(minutes(one) for one in found))
RECEIVERS = st.sampled_from([PAYBILL, TILL])


@st.composite
def payments(draw: st.DrawFn, payment_id: str) -> Payment:
    """Any payment, in any state."""
    state: dict[str, Any] = draw(st.sampled_from([{}, CANCELLED, TIMED_OUT, PAID, {"status": "completed"}]))
    is_ours = draw(st.booleans())
    return payment(
        payment_id=payment_id,
        merchant_id=draw(st.sampled_from(["mer_1", "mer_2"])),
        shortcode=draw(RECEIVERS).number,
        amount=draw(st.sampled_from([700, 701])),
        phone=draw(PHONES),
        # A reference of our own is unique.
        reference=f"OWN{payment_id}" if is_ours else draw(st.sampled_from(["table 4", "table 5"])),
        reference_is_ours=is_ours,
        created_at=minutes(draw(st.integers(-30, 30))),
        checkout_request_id=f"ws_{payment_id}",
        mismatch=draw(st.sampled_from([None, None, "unconfirmed", "amount", "returned"]))
        if "receipt" not in state
        else None,
        **state | ({"receipt": f"RCPT{payment_id}"} if "receipt" in state else {}),
    )


BOOKS = st.lists(st.sampled_from(["a", "b", "c"]), unique=True).flatmap(
    lambda ids: st.tuples(*(payments(one) for one in ids)).map(list)
)


@st.composite
def reports(draw: st.DrawFn) -> Evidence:
    """Any report of a statement or a status result."""
    is_status = draw(st.booleans())
    own = [f"OWN{one}" for one in "abc"]
    receiver = draw(RECEIVERS)
    return Evidence(
        source=Source.STATUS_QUERY if is_status else Source.STATEMENT,
        proof=Proof.ANSWER if is_status else draw(st.sampled_from([Proof.WINDOW, Proof.PAGE, Proof.ANSWER])),
        direction=draw(st.sampled_from([Direction.IN, Direction.IN, Direction.IN, Direction.OUT, None])),
        receiver=receiver,
        receipt=draw(st.sampled_from([RECEIPT, "RCPTa", "RCPTb", None])),
        # Neither a status result nor a till's statement shows a reference that could be removed.
        reference=None if is_status or receiver.is_till else draw(st.one_of(REFERENCES, st.sampled_from(own))) or None,
        amount=draw(st.sampled_from([Kes(700), Kes(700), Kes(701), "700.50", None])),
        payer=draw(SHOWN),
        time=draw(TIMES),
        handle=Handle(draw(st.sampled_from(["a", "b"]))) if is_status and draw(st.booleans()) else None,
    )


MONEY = st.lists(
    st.builds(
        rival,
        receipt=st.sampled_from(["OTHER00001", "OTHER00002"]),
        direction=st.sampled_from([Direction.IN, Direction.OUT, None]),
        receiver=RECEIVERS,
        payer=SHOWN,
        reference=st.sampled_from(["table 4", "table 5", None]),
        time=TIMES,
    ),
    max_size=2,
)

PARTS: tuple[dict[str, Any], ...] = (
    {"payer": None},
    {"reference": None},
    {"time": ()},
    {"direction": None},
    {"receipt": None},
    {"amount": None},
)
"""Fields that a report can lack."""


def completes(verdict: Verdict) -> str | None:
    """The payment that a verdict completes."""
    return verdict.payment_id if isinstance(verdict, PaidBy) else None


@FAST
@given(reports(), BOOKS, MONEY, st.sets(st.sampled_from(range(len(PARTS)))))
def test_judge_report_with_fewer_fields_completes_no_other_payment(
    report: Evidence, books: list[Payment], money: list[Transaction], removed: set[int]
) -> None:
    whole = completes(judge(report, books, money))
    less = report
    for number in removed:
        less = replace(less, **PARTS[number])
    assert completes(judge(less, books, money)) in {None, whole}


@FAST
@given(reports(), BOOKS, MONEY)
def test_judge_report_that_several_receivers_share_changes_no_payment_without_its_receipt(
    report: Evidence, books: list[Payment], money: list[Transaction]
) -> None:
    shared = judge(replace(report, is_shared=True), books, money)
    assert completes(shared) is None
    if isinstance(shared, Mismatch):
        (changed,) = (one for one in books if one.payment_id == shared.payment_id)
        assert changed.receipt is not None
        assert changed.receipt == report.receipt
    if completes(judge(report, books, money)) is None and report.handle is None:
        assert isinstance(shared, Ambiguous) or shared == judge(report, books, money)


@FAST
@given(reports(), BOOKS, MONEY, st.sets(st.sampled_from(["a", "b", "c"])))
def test_judge_report_settles_payments_of_its_receiver_only(
    report: Evidence, books: list[Payment], money: list[Transaction], named: set[str]
) -> None:
    """The receipt is named for some payments. A report about a push has the receiver of its payment."""
    books = [replace(one, received_receipt=RECEIPT if one.payment_id in named else None) for one in books]
    verdict = judge(replace(report, handle=None), books, money)
    if isinstance(verdict, PaidBy | Mismatch | AlreadyKnown):
        (settled,) = (one for one in books if one.payment_id == verdict.payment_id)
        assert report.receiver is not None
        assert (settled.env, settled.shortcode) == (report.receiver.env, report.receiver.number)


@st.composite
def true_stories(draw: st.DrawFn) -> tuple[Evidence, Payment]:
    """A paid payment without a callback, and a complete report of its money."""
    receiver = draw(RECEIVERS)
    is_ours = draw(st.booleans())
    paid = payment(
        payment_id="true",
        shortcode=receiver.number,
        phone=draw(PHONES),
        reference="OWNtrue" if is_ours else "table 4",
        reference_is_ours=is_ours,
        checkout_request_id="ws_true",
        **draw(st.sampled_from([{}, TIMED_OUT, {"status": "completed"}])),
    )
    report = line(
        receiver=receiver,
        reference=None
        if receiver.is_till
        else draw(st.sampled_from([str.upper, str.lower, " {} ".format]))(paid.reference),
        payer=draw(
            st.sampled_from([paid.phone, "0" + str(paid.phone)[3:], sha256(str(paid.phone).encode()).hexdigest()])
        ),
        time=(minutes(draw(st.integers(-2, 15))),),
    )
    if draw(st.booleans()):
        handle = draw(st.sampled_from([None, Handle("true")]))
        report = replace(report, source=Source.STATUS_QUERY, proof=Proof.ANSWER, reference=None, handle=handle)
    return report, paid


@FAST
@given(true_stories())
def test_judge_complete_true_report_completes_its_payment(story: tuple[Evidence, Payment]) -> None:
    report, paid = story
    assert completes(judge(report, [paid])) == "true"
    assert completes(judge(callback(handle=Handle("true", "ws_true")), [paid])) == "true"


@FAST
@given(true_stories(), BOOKS, MONEY)
def test_judge_true_report_among_other_payments_is_the_same_or_ambiguous(
    story: tuple[Evidence, Payment], books: list[Payment], money: list[Transaction]
) -> None:
    report, paid = story
    alone = judge(report, [paid])
    assert judge(report, [paid, *books], money) == alone or isinstance(judge(report, [paid, *books], money), Ambiguous)


@FAST
@given(reports(), BOOKS, MONEY, st.randoms(use_true_random=False))
def test_judge_does_not_depend_on_the_order_of_payments_and_transactions(
    report: Evidence, books: list[Payment], money: list[Transaction], random: Any
) -> None:
    verdict = judge(report, books, money)
    shuffled, other = books[:], money[:]
    random.shuffle(shuffled)
    random.shuffle(other)
    assert judge(report, shuffled, other) == verdict


@FAST
@given(reports(), BOOKS, MONEY, st.integers(-100_000, 100_000))
def test_judge_does_not_depend_on_the_date(
    report: Evidence, books: list[Payment], money: list[Transaction], by: int
) -> None:
    later = timedelta(minutes=by)

    def moved(times: tuple[datetime, ...]) -> tuple[datetime, ...]:
        return tuple(at + later for at in times)

    verdict = judge(report, books, money)
    assert verdict == judge(
        replace(report, time=moved(report.time)),
        [replace(one, created_at=one.created_at + later) for one in books],
        [replace(one, time=moved(one.time)) for one in money],
    )


@FAST
@given(true_stories(), BOOKS)
def test_judge_report_shifted_by_the_wrong_zone_completes_nothing_by_the_rule(
    story: tuple[Evidence, Payment], books: list[Payment]
) -> None:
    report, paid = story
    for shift in (timedelta(hours=3), timedelta(hours=-3)):
        verdict = judge(replace(report, time=tuple(at + shift for at in report.time)), [paid])
        assert not (isinstance(verdict, PaidBy) and verdict.by == "rule")
    both = replace(report, time=(report.time[0], report.time[0] + timedelta(hours=3)))
    found = judge(both, [paid, *books])
    assert not (isinstance(found, PaidBy) and found.by == "rule")


STATES = st.sampled_from([{}, CANCELLED, TIMED_OUT, PAID, {"status": "completed"}, {"mismatch": "phone"}])


@FAST
@given(
    STATES,
    STATES,
    st.fixed_dictionaries(
        {},
        optional={
            "payer": st.sampled_from([PHONE, "2547****001", "254799999999", None]),
            "amount": st.sampled_from([Kes(700), Kes(5), "x", None]),
            "proof": st.sampled_from([Proof.PAGE, Proof.ANSWER]),
            "direction": st.none(),
        },
    ),
)
def test_judge_shared_reference_is_the_first_payments_only_if_no_other_fits(
    first: dict[str, Any], second: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Otherwise one receipt would complete the first payment, and M-Pesa's answer about its push the second."""
    payments = [replace(FIRST_OF_TWO, **first), replace(SECOND_OF_TWO, **second)]
    report = line(**{"reference": OWN} | changes)
    verdict = judge(report, payments)
    if isinstance(judge(report, payments[1:]), PaidBy):
        assert not isinstance(verdict, PaidBy) or verdict.payment_id == "pay_2"
    assert judge(report, payments[::-1]) == verdict
