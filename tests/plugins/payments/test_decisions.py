"""Protects decisions about payments: the result of each report for each status, one at a time and in batches."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpesa_gateway.clock import SetClock
from mpesa_gateway.db.json_codec import dumps
from mpesa_gateway.money import Kes
from mpesa_gateway_callbacks.api import DifferentSubject
from mpesa_gateway_payments import tables, verdicts
from mpesa_gateway_payments.changes import PaymentChange
from mpesa_gateway_payments.decisions import (
    Complete,
    Confirm,
    Decision,
    DropClaim,
    Expired,
    Fail,
    LearnHandle,
    MatchedMoney,
    Mismatch,
    Report,
    ReportedFailure,
    StkAnswer,
    StkCallback,
    as_mismatch,
    decide,
    result_of,
)
from mpesa_gateway_payments.events import PaymentCompleted, PaymentFailed, PaymentMismatched, StkResulted
from mpesa_gateway_payments.evidence import ReportedMoney
from mpesa_gateway_payments.result_codes import stk_query_outcome
from mpesa_gateway_payments.states import Cause, Charge, Status
from mpesa_gateway_payments.stk_results import StkResults
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.verdicts import Payment, Rules
from tests.conftest import Harness
from tests.identifiers import identifiers

FAST = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOON = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
PHONE, RECEIPT, OTHER = "254711000001", "TKN4A1B2C3", "TKN9Z9Y9X9"
PAYMENT_ID, HANDLE = "pay_1", "ws_CO_1"
RULES = Rules()
TOLD = ReportedMoney(receipt=RECEIPT, amount=Kes(500), amount_text="500", phone=PHONE)


def payment(**changes: Any) -> Payment:
    """A pending payment whose push M-Pesa has acknowledged."""
    values: dict[str, Any] = {
        "payment_id": PAYMENT_ID,
        "merchant_id": "mer_1",
        "env": "sandbox",
        "shortcode": "174379",
        "amount": 500,
        "phone": PHONE,
        "reference": "order 1",
        "reference_is_ours": False,
        "created_at": NOON,
        "status": "pending",
        "checkout_request_id": HANDLE,
    }
    return Payment(**(values | changes))


def callback(code: str = "0", *, handle: str = HANDLE, has_token: bool = True, **changes: Any) -> StkResulted:
    """An STK callback, with the requested amount by default."""
    is_paid = code == "0"
    values: dict[str, Any] = {
        "merchant_id": "mer_1" if has_token else "",
        "env": "sandbox" if has_token else None,
        "subject_id": PAYMENT_ID if has_token else "",
        "callback_id": "cbk_1",
        "received_at": NOON,
        "result_code": code,
        "result_desc": "said",
        "checkout_request_id": handle,
        "merchant_request_id": "m-1",
        "amount": Kes(500) if is_paid else None,
        "amount_text": "500" if is_paid else None,
        "receipt": RECEIPT if is_paid else None,
        "phone": PHONE if is_paid else None,
        "paid_at": None,
    }
    return StkResulted(**(values | changes))


STATES: dict[str, dict[str, Any]] = {
    "pending": {},
    "unknown": {"checkout_request_id": None, "charge": "unknown"},
    "released": {"checkout_request_id": None, "charge": "released"},
    "claimed": {"claim": TOLD},
    "held": {"mismatch": "amount", "received_receipt": OTHER},
    "failed": {"status": "failed", "failure_reason": "cancelled_by_user", "outcome_is_final": True},
    "expired": {"status": "failed", "failure_reason": "expired"},
    "completed": {"status": "completed", "receipt": RECEIPT},
    "unreceipted": {"status": "completed"},
    "reversed": {"status": "reversed", "receipt": RECEIPT},
    "partially_reversed": {"status": "partially_reversed", "receipt": RECEIPT},
}

REPORTS: dict[str, Report] = {
    "paid": StkCallback(callback()),
    "paid by another": StkCallback(callback(phone="254722000002")),
    "paid another amount": StkCallback(callback(amount=Kes(50), amount_text="50")),
    "paid, forged": StkCallback(callback(has_token=False)),
    "paid, other push": StkCallback(callback(handle="ws_CO_2")),
    "paid, push of another": StkCallback(callback(handle="ws_CO_2"), names_another=True),
    "paid, other merchant": StkCallback(callback(merchant_id="mer_2")),
    "failed": StkCallback(callback("1032")),
    "failed, forged": StkCallback(callback("1032", has_token=False)),
    "failed, other push": StkCallback(callback("1032", handle="ws_CO_2")),
    "unknown with receipt": StkCallback(callback("777", receipt=RECEIPT)),
    "answered paid": StkAnswer(stk_query_outcome("0")),
    "answered failed": StkAnswer(stk_query_outcome("1032")),
    "settled": MatchedMoney(verdicts.PaidBy(PAYMENT_ID, "rule"), TOLD, Cause.STATEMENT),
    "ambiguous": MatchedMoney(verdicts.Ambiguous((PAYMENT_ID,)), TOLD, Cause.STATEMENT),
    "mismatched": MatchedMoney(verdicts.Mismatch(PAYMENT_ID, "amount"), TOLD, Cause.STATUS_QUERY),
    "not paid": ReportedFailure(code="x", text="", reason="other", cause=Cause.STATUS_QUERY),
    "time up": Expired(NOON + timedelta(hours=1)),
}

RESULTS: dict[str, dict[str, str]] = {
    "paid": {
        **dict.fromkeys(("pending", "unknown", "released", "claimed", "failed", "expired", "held"), "completed"),
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "known"),
    },
    "paid by another": {
        **dict.fromkeys(("pending", "unknown", "released", "claimed", "failed", "expired", "held"), "completed"),
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "known"),
    },
    "paid another amount": dict.fromkeys(STATES, "mismatched"),
    "paid, forged": {
        **dict.fromkeys(("pending", "failed", "expired"), "confirming"),
        "claimed": "waiting",
        "held": "mismatched",
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "known"),
        # Without a token it names an unknown push.
        **dict.fromkeys(("unknown", "released"), "refused"),
    },
    "paid, other push": {
        **dict.fromkeys(("pending", "unknown", "released", "claimed", "failed", "expired", "held"), "completed"),
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "known"),
    },
    # With an unknown push, only the address identifies the payment.
    "paid, push of another": dict.fromkeys(STATES, "refused") | {"unknown": "completed", "released": "completed"},
    "paid, other merchant": dict.fromkeys(STATES, "refused"),
    "failed": dict.fromkeys(STATES, "ignored") | dict.fromkeys(("pending", "unknown", "released"), "failed"),
    "failed, forged": dict.fromkeys(STATES, "confirming") | dict.fromkeys(("unknown", "released"), "refused"),
    "failed, other push": dict.fromkeys(STATES, "refused") | {"unknown": "failed", "released": "failed"},
    "unknown with receipt": {
        **dict.fromkeys(STATES, "mismatched"),
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "ignored"),
    },
    "answered paid": {
        **dict.fromkeys(("pending", "unknown", "released", "claimed", "expired"), "completed"),
        # M-Pesa's last word was a failure: without a receipt an operator decides.
        **dict.fromkeys(("held", "failed"), "mismatched"),
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "known"),
    },
    "answered failed": dict.fromkeys(STATES, "ignored")
    | dict.fromkeys(("pending", "unknown", "released", "claimed"), "failed"),
    "settled": {
        **dict.fromkeys(("pending", "unknown", "released", "claimed", "failed", "expired", "held"), "completed"),
        **dict.fromkeys(("completed", "unreceipted", "reversed", "partially_reversed"), "known"),
    },
    "ambiguous": dict.fromkeys(STATES, "ignored"),
    "mismatched": dict.fromkeys(STATES, "mismatched"),
    "not paid": dict.fromkeys(STATES, "ignored") | dict.fromkeys(("pending", "unknown", "released"), "failed"),
    "time up": dict.fromkeys(STATES, "ignored")
    | dict.fromkeys(("pending", "unknown", "released"), "failed")
    | {"claimed": "mismatched"},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("report", REPORTS)
def test_decide_every_status_and_report_has_the_result_of_the_table(report: str, state: str) -> None:
    decisions = decide(payment(**STATES[state]), REPORTS[report], RULES)
    assert result_of(decisions) == RESULTS[report][state], decisions


def test_decision_table_covers_every_status_and_charge() -> None:
    assert {payment(**values).status for values in STATES.values()} == {status.value for status in Status}
    assert {payment(**values).charge for values in STATES.values()} <= {charge.value for charge in Charge}


def row_of(one: Payment) -> dict[str, Any]:
    """The columns of a payment's row that decisions read and write."""
    ended = one.status not in {"pending", "failed"}
    return {
        **{name: getattr(one, name) for name in Payment.__dataclass_fields__ if name != "claim"},
        "claim": None if one.claim is None else dumps(one.claim),
        "erased_at": None,
        "currency": "KES",
        "provider": "mpesa",
        "metadata": "{}",
        "merchant_request_id": None,
        "result_code": None,
        "result_desc": None,
        "is_mismatch_of_paid": False,
        "received_amount": None,
        "received_phone": None,
        "reviewed_at": None,
        "due_at": None if ended or one.mismatch else NOON,
        "expires_at": NOON + timedelta(minutes=15),
        "updated_at": NOON,
        "completed_at": NOON if ended else None,
        "completed_by": "callback" if ended else None,
    }


def applied(one: Payment, decisions: tuple[Decision, ...]) -> PaymentChange:
    """The change that decisions make."""
    change = PaymentChange(row_of(one))
    for decision in decisions:
        change.apply(decision, NOON)
    return change


def payment_with(state: str, mismatch: str | None, claim: ReportedMoney | None) -> Payment:
    """A payment of the table, with a mismatch and a claim."""
    changes: dict[str, Any] = {"mismatch": mismatch, "claim": claim}
    return payment(**STATES[state] | {name: value for name, value in changes.items() if value is not None})


def callback_with(code: str, handle: str, amount: Kes | None, *, has_token: bool, **changes: Any) -> StkCallback:
    """A callback with these values."""
    text = None if amount is None else str(int(amount))
    return StkCallback(callback(code, has_token=has_token, handle=handle, amount=amount, amount_text=text, **changes))


payments = st.builds(
    payment_with,
    st.sampled_from(sorted(STATES)),
    st.sampled_from([None, "phone", "amount", "receipt", "unconfirmed", "returned"]),
    st.sampled_from([None, TOLD, ReportedMoney(receipt=OTHER, is_proven=False)]),
)
callbacks = st.builds(
    callback_with,
    st.sampled_from(["0", "1", "1032", "1037", "777", "4999"]),
    st.sampled_from([HANDLE, "ws_CO_2"]),
    st.sampled_from([Kes(500), Kes(50), None]),
    has_token=st.booleans(),
    receipt=st.sampled_from([RECEIPT, OTHER, None]),
    phone=st.sampled_from([PHONE, "254722000002", "2547*****001", None]),
    is_listed=st.booleans(),
)
reports = st.one_of(callbacks, st.sampled_from([REPORTS[name] for name in sorted(REPORTS)]))
all_rules = st.sampled_from([Rules(), Rules(confirm="mismatch"), Rules(confirm="always")])


@FAST
@given(payments, callbacks, all_rules)
def test_decide_callback_without_proof_neither_completes_nor_fails(
    one: Payment, report: StkCallback, rules: Rules
) -> None:
    decisions = decide(one, report, rules)
    if not report.result.subject_id and not report.result.is_listed:
        assert not any(isinstance(decision, Complete | Fail) for decision in decisions)


@FAST
@given(payments, reports, all_rules)
def test_apply_event_and_step_exist_exactly_if_the_transition_happened(
    one: Payment, report: Report, rules: Rules
) -> None:
    decisions = decide(one, report, rules)
    change = applied(one, decisions)
    before, after = one.status, change.row["status"]
    events = [type(event) for event in change.events]
    assert events.count(PaymentCompleted) == (before != after == "completed")
    assert events.count(PaymentFailed) == (before != after == "failed")
    assert [reason is None for reason in change.ended] == [after == "completed"] * (before != after)
    failures = [step for step in change.steps if step[2] in {"failed", "refused", "expired"}]
    assert len(failures) == (before != after == "failed")
    mismatched = sum(isinstance(decision, Mismatch) for decision in decisions)
    assert len([step for step in change.steps if step[2] == "mismatched"]) <= mismatched
    if before != after:
        assert (before, after) in {("pending", "completed"), ("pending", "failed"), ("failed", "completed")}
    if before == "failed" and after == "completed":
        assert change.row["receipt"] is not None or not one.outcome_is_final


@FAST
@given(payments, reports, reports, all_rules)
def test_apply_first_receipt_stays_whatever_follows(one: Payment, first: Report, second: Report, rules: Rules) -> None:
    change = applied(one, decide(one, first, rules))
    receipt, completed_at = change.row["receipt"], change.row["completed_at"]
    later = verdicts.payment_of(change.row)
    for decision in decide(later, second, rules):
        change.apply(decision, NOON + timedelta(hours=1))
    assert receipt in {None, change.row["receipt"]}
    assert completed_at in {None, change.row["completed_at"]}


@FAST
@given(payments)
def test_decide_proof_of_money_at_its_own_address_completes_every_open_payment(one: Payment) -> None:
    change = applied(one, decide(one, REPORTS["paid"], RULES))
    assert one.status not in {"pending", "failed"} or change.row["status"] == "completed"


@FAST
@given(payments, reports, all_rules)
def test_apply_the_same_report_again_publishes_nothing_new(one: Payment, report: Report, rules: Rules) -> None:
    change = applied(one, decide(one, report, rules))
    count = len(change.events)
    for decision in decide(verdicts.payment_of(change.row), report, rules):
        change.apply(decision, NOON)
    again = [event for event in change.events[count:] if not isinstance(event, PaymentMismatched)]
    assert again == []


def test_as_mismatch_turns_completion_into_a_mismatch() -> None:
    learnt = LearnHandle("ws_CO_9", None)
    decisions = as_mismatch((learnt, DropClaim(), Complete(TOLD, Cause.CALLBACK)), "receipt")
    assert decisions == (learnt, DropClaim(), Mismatch("receipt", TOLD, Cause.CALLBACK))


# -- batches --------------------------------------------------------------------------------------------------------

FILL = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency, phone,
    reference, reference_is_ours, description, idempotency_key, charge, merchant_request_id, checkout_request_id,
    due_at, expires_at, created_at, updated_at)
SELECT id, $1, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode WHERE merchant_id = $1 ORDER BY shortcode_id LIMIT 1), 500, 'KES',
    '254711000001', 'order', false, 'Payment', $2 || n::text, 'accepted', 'm-' || $2 || n::text,
    'ws_CO_' || $2 || n::text, $4::timestamptz + interval '1 hour', $4::timestamptz + interval '1 hour',
    $4::timestamptz - interval '1 hour', $4
FROM (SELECT id, number - 1 AS n FROM unnest($3::uuid[]) WITH ORDINALITY AS given(id, number)) AS numbered
RETURNING payment_id
"""

WRITTEN = """
SELECT to_jsonb(payment) - ARRAY['payment_id', 'idempotency_key', 'merchant_request_id', 'checkout_request_id'] AS row,
    ARRAY(SELECT jsonb_build_array(kind, cause, result_code, detail) FROM payment_step
        WHERE payment_step.payment_id = payment.payment_id ORDER BY number) AS steps,
    ARRAY(SELECT kind FROM event WHERE subject_id = payment.payment_id ORDER BY kind) AS events,
    ARRAY(SELECT event_type FROM delivery WHERE delivery.payment_id = payment.payment_id ORDER BY event_type) AS owed
FROM payment WHERE payment_id = ANY($1::uuid[]) ORDER BY payment_id
"""


def payment_ids_of(side: str, count: int) -> list[str]:
    """The ids of the first `count` payments of one side."""
    return identifiers("pay", range(ord(side) * 100, ord(side) * 100 + count))


def report_number(number: int, index: int, side: str, merchant_id: str) -> Report:
    """Report `number` about a payment of one side: equal for both sides except for unique values."""
    named: dict[str, Any] = {
        "merchant_id": merchant_id,
        "subject_id": payment_ids_of(side, index + 1)[index],
        "handle": f"ws_CO_{side}{index}",
    }
    receipt = f"R{side.upper()}{number:04}{index:02}"
    kinds: list[Report] = [
        StkCallback(callback(receipt=receipt, **named)),
        StkCallback(callback(receipt=receipt, **named)),
        StkCallback(callback(receipt=receipt, amount=Kes(50), amount_text="50", **named)),
        StkCallback(callback("1032", **named)),
        StkAnswer(stk_query_outcome("0")),
        StkAnswer(stk_query_outcome("1037")),
        Expired(NOON + timedelta(days=365)),
    ]
    return random.Random(number).choice(kinds)  # noqa: S311 - no secret


@pytest.mark.as_owner
async def test_batch_of_decisions_writes_the_same_as_batches_of_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, chance = harness.gateway, random.Random(15)  # noqa: S311 - no secret
    db, moves = gateway.db, gateway.services.get(Transitions)
    clock = SetClock(gateway.clock.now())
    monkeypatch.setattr(moves, "_clock", clock)
    merchant_id = (await harness.api.pay(PHONE, key="first")).data["merchant_id"]
    ids = {
        side: [
            row["payment_id"] for row in await db.fetch(FILL, merchant_id, side, payment_ids_of(side, 30), clock.now())
        ]
        for side in "ab"
    }

    async def take(side: str, chosen: list[tuple[int, int]]) -> list[str]:
        async with db.transaction():
            wanted = sorted({ids[side][index] for _, index in chosen})
            known = {row["payment_id"]: row for row in await db.fetch(tables.LOCK, wanted)}
            decided = await moves.apply_batch(
                [(known[ids[side][index]], report_number(number, index, side, merchant_id)) for number, index in chosen]
            )
        return [result_of(decisions) for decisions in decided]

    for round_ in range(15):
        # Some reports are about the same payment, and some are repeated.
        chosen = [(round_ * 100 + chance.randrange(20), chance.randrange(30)) for _ in range(10)]
        clock.advance(timedelta(seconds=1))
        together = await take("a", chosen)
        alone = [result for one in chosen for result in await take("b", [one])]
        assert together == alone
    left, right = await db.fetch(WRITTEN, ids["a"]), await db.fetch(WRITTEN, ids["b"])
    assert [str(tuple(row)).replace("RA", "RB") for row in left] == [str(tuple(row)) for row in right]
    happened = {kind for row in left for kind in row["events"]}
    assert happened == {"payment.completed", "payment.failed", "payment.mismatched"}
    # The webhooks' rows are written with the events.
    assert all(row["events"] == row["owed"] for row in left)


@pytest.mark.as_owner
@pytest.mark.parametrize("code", ["0", "1032"])
async def test_callback_with_the_handle_of_another_payment_is_refused(harness: Harness, code: str) -> None:
    db, results = harness.gateway.db, harness.gateway.services.get(StkResults)
    merchant_id = (await harness.api.pay(PHONE, key="first")).data["merchant_id"]
    known, unknown = [
        row["payment_id"]
        for row in await db.fetch(FILL, merchant_id, "c", payment_ids_of("c", 2), harness.gateway.clock.now())
    ]
    await db.execute("UPDATE payment SET charge = 'unknown', checkout_request_id = NULL WHERE payment_id = $1", unknown)
    result = callback(code, handle="ws_CO_c0", subject_id=unknown, merchant_id=merchant_id)

    async def take() -> None:
        async with db.transaction():
            await results.apply_results([result])

    with pytest.raises(DifferentSubject):
        await take()
    rows = await db.fetch("SELECT DISTINCT status FROM payment WHERE payment_id = ANY($1::uuid[])", [known, unknown])
    assert [row["status"] for row in rows] == ["pending"]


def test_confirm_of_an_erased_payment_stores_neither_number_nor_text_with_the_number() -> None:
    change = PaymentChange(row_of(payment()) | {"phone": "erased", "erased_at": NOON, "expires_at": NOON})
    told = ReportedMoney(receipt=OTHER, phone=PHONE, text=f"Paid by {PHONE}")
    change.apply(Confirm(told, timedelta(hours=1)), NOON)
    assert PHONE not in change.row["claim"]
    assert OTHER in change.row["claim"]
    assert all(PHONE not in str(step) for step in change.steps)
