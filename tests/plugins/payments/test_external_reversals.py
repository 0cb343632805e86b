"""Protects payments reversed on M-Pesa's side without a refund: they are marked, published and not refunded."""

import asyncio
import random
from collections import Counter
from contextvars import Context
from datetime import datetime
from itertools import product
from typing import Any

import msgspec
import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.invariant import Invariant
from mpesa_gateway.money import Kes
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import Direction, Evidence, Proof, Receiver, Settled, Source, StatementMatching
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.invariants import INVARIANTS as PAYMENTS
from mpesa_gateway_payments.operator_service import PaymentOperatorService, needs_review
from mpesa_gateway_payments.result_codes import TransactionState, transaction_state
from mpesa_gateway_payments.status_queries import StatusQueryService
from mpesa_gateway_refunds.invariants import INVARIANTS as REFUNDS
from tests.conftest import Harness
from tests.daraja import Daraja, result, stk_callback

RECEIPT = "TKN4A1B2C3"

initiated = pytest.mark.usefixtures("initiated")


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only."""
    return values | {"daraja": {"sandbox_url": daraja.base}, "refunds": {"query_after": [3600]}}


async def call_back(harness: Harness, kind: Any, subject_id: str, body: dict[str, Any]) -> None:
    """Post a callback to the address of its subject."""
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    url = harness.gateway.services.get(Callbacks).url_for(
        kind, env="sandbox", merchant_id=merchant_id, subject_id=subject_id
    )
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200


async def complete_payment(harness: Harness) -> str:
    """Create and complete a payment; returns its id."""
    made = (await harness.api.pay("254711000001", 500, key="a")).data
    await call_back(harness, "stk", made["id"], stk_callback(made["provider_ref"], receipt=RECEIPT))
    return str(made["id"])


async def query_status(harness: Harness, status: str, about: str = RECEIPT) -> str:
    """Send a status query and post M-Pesa's result; returns the finding."""
    check = (await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{about}")).data
    await call_back(harness, "status", check["check_id"], status_result(status))
    found = (await harness.api.call("GET", f"/v1/payments/mpesa/checks/{check['check_id']}")).data
    return str(found["finding"])


def status_result(status: str) -> dict[str, Any]:
    """M-Pesa's result about KES 500 of the payer."""
    return result(
        0,
        transaction_id="X",
        says={
            "ReceiptNo": RECEIPT,
            "TransactionStatus": status,
            "Amount": "500.00",
            "DebitPartyName": "254711000001 - A PAYER",
            "CreditPartyName": "174379 - A SHOP",
            "FinalisedTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
        },
    )


def report_of(harness: Harness, **more: Any) -> Evidence:
    """A line of KES 500 on a complete statement."""
    values: dict[str, Any] = {
        "source": Source.STATEMENT,
        "proof": Proof.WINDOW,
        "direction": Direction.IN,
        "receiver": Receiver("sandbox", "174379"),
        "amount": Kes(500),
        "payer": "254711000001",
        "time": (harness.gateway.clock.now(),),
    }
    return Evidence(**values | more)


async def settle(harness: Harness, report: Evidence) -> Settled:
    """Settle a report as reconciliation does."""
    async with harness.gateway.db.transaction():
        return await harness.gateway.services.get(StatementMatching).apply(report)


async def violations(harness: Harness, *invariants: Invariant) -> list[str]:
    """The names of the invariants that do not hold."""
    return [one.name for one in invariants if one.grace is None and await harness.gateway.db.fetch(one.sql)]


async def reversal_events(harness: Harness) -> list[dict[str, Any]]:
    """The data of the `payment.reversed` events."""
    rows = await harness.gateway.db.fetch(
        "SELECT event.body FROM event WHERE kind = 'payment.reversed' ORDER BY event_id"
    )
    return [msgspec.json.decode(row["body"])["data"] for row in rows]


@initiated
async def test_outside_reversal_marks_the_payment_and_publishes_it(harness: Harness, daraja: Daraja) -> None:
    payment_id = await complete_payment(harness)
    assert await query_status(harness, "Reversed") == "reversed"
    payment = (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data
    assert (payment["status"], payment["refunded_amount"]) == ("reversed", "500.00")
    (event,) = await reversal_events(harness)
    assert (event["origin"], event["refund_id"], event["refund_amount"]) == ("mpesa", None, "500.00")
    webhook = (await harness.receiver.wait_for(1, kind="payment.reversed"))[0].json
    assert (webhook["data"]["origin"], webhook["data"]["status"]) == ("mpesa", "reversed")
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    refused = await harness.api.call("POST", "/v1/refunds", {"payment_id": payment_id})
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert "outside this gateway" in refused.error["message"]
    assert daraja.requests_of("reversal") == []
    # The same result again adds nothing.
    assert await query_status(harness, "REVERSED ") == "reversed"
    assert len(await reversal_events(harness)) == 1
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
@pytest.mark.parametrize("text", ["Partially Reversed", "partially_reversed", "Reversed Partially", "PartialReversal"])
async def test_outside_reversal_of_a_part_needs_review_and_blocks_refunds(harness: Harness, text: str) -> None:
    payment_id = await complete_payment(harness)
    assert await query_status(harness, text) == "reversed"
    payment = (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data
    assert (payment["status"], payment["refunded_amount"]) == ("completed", "0.00")
    (event,) = await reversal_events(harness)
    assert (event["origin"], event["refund_amount"], event["refunded_amount"]) == ("mpesa", None, "0.00")
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    refused = await harness.api.call("POST", "/v1/refunds", {"payment_id": payment_id})
    assert refused.status == 409
    # A later result reverses all of it.
    assert await query_status(harness, "Reversed") == "reversed"
    assert (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data["status"] == "reversed"
    assert len(await reversal_events(harness)) == 2
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
@pytest.mark.parametrize("amount", [None, 200])
async def test_status_result_reversed_by_our_refund_is_left_to_the_refund(harness: Harness, amount: int | None) -> None:
    payment_id = await complete_payment(harness)
    body = {"payment_id": payment_id} | ({} if amount is None else {"amount": amount})
    refund = (await harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "r"})).data
    for _ in range(2):
        assert await query_status(harness, "Reversed") == "reversed"
        row = await harness.gateway.db.fetchrow("SELECT * FROM payment")
        assert row is not None
        assert row["reversed_outside"] is None
        if row["status"] == "completed":
            done = result(0, transaction_id="TKN9REV001", says={"OriginalTransactionID": RECEIPT})
            await call_back(harness, "reversal", refund["id"], done)
    (event,) = await reversal_events(harness)
    assert (event["origin"], event["refund_id"]) == ("refund", refund["id"])
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 0
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
@pytest.mark.parametrize("has_receipt", [True, False])
async def test_callback_with_wrong_amount_after_a_query_completion_needs_review(
    harness: Harness, daraja: Daraja, has_receipt: bool
) -> None:
    made = (await harness.api.pay("254711000001", 500, key="a")).data
    daraja.add_answers("stkquery", (200, {"ResponseCode": "0", "ResultCode": "0", "ResultDesc": "Processed"}))
    assert (await harness.api.call("POST", f"/v1/payments/{made['id']}/query")).data["status"] == "completed"
    body = stk_callback(made["provider_ref"], amount=5, receipt=RECEIPT if has_receipt else None)
    await call_back(harness, "stk", made["id"], body)
    row = await harness.gateway.db.fetchrow("SELECT * FROM payment")
    assert row is not None
    assert (row["status"], row["mismatch"], row["receipt"]) == ("completed", "amount", None)
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    assert needs_review(row)


@initiated
async def test_waits_for_a_person_in_sql_and_python_agree(harness: Harness) -> None:
    columns = (
        "SELECT $1::text AS status, $2::text AS mismatch, $3::text AS receipt, $4::text AS received_receipt, "
        "NULL::timestamptz AS reviewed_at, NULL::text AS reversed_outside, $5::boolean AS is_mismatch_of_paid"
    )
    sql = f"SELECT *, ({tables.NEEDS_REVIEW}) AS waits FROM ({columns}) AS payment"  # noqa: S608 - constants
    every = product(
        ("pending", "failed", "completed"),
        (None, "amount", "phone", "receipt", "unconfirmed", "returned"),
        (None, "A"),
        (None, "A", "B"),
        (False, True),
    )
    for values_of_row in every:
        row = await harness.gateway.db.fetchrow(sql, *values_of_row)
        assert row is not None
        assert bool(row["waits"]) == needs_review(row), values_of_row


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Completed", "completed"),
        ("Reversed", "reversed"),
        (" partially reversed", "partially_reversed"),
        ("Reversal Pending", "pending"),
        ("Not Reversed", "pending"),
        ("", "pending"),
        (None, "pending"),
    ],
)
def test_transaction_state_reads_the_whole_text(text: str | None, state: str) -> None:
    assert transaction_state(text) == state


@initiated
@pytest.mark.parametrize("by", ["conversation", "reference of our own", "receipt that was reported"])
@pytest.mark.parametrize("status", ["Reversed", "Partially Reversed"])
async def test_outside_reversal_before_completion_publishes_completed_and_reversed(
    harness: Harness, by: str, status: str
) -> None:
    made = (await harness.api.pay("254711000001", 500, key="a")).data
    if by == "receipt that was reported":
        await call_back(harness, "stk", made["id"], stk_callback(made["provider_ref"], amount=5, receipt=RECEIPT))
    about = made["id"] if by == "conversation" else RECEIPT
    if by == "reference of our own":
        checks = harness.gateway.services.get(StatusQueryService)
        await checks.ask(made["merchant_id"], "sandbox", RECEIPT, reference=made["reference"])
        check_id = await harness.gateway.db.fetchval("SELECT check_id FROM status_check")
        await call_back(harness, "status", check_id, status_result(status))
    else:
        assert await query_status(harness, status, about) == "reversed"
    payment = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
    expected = "reversed" if status == "Reversed" else "completed"
    assert (payment["status"], payment["receipt"]) == (expected, RECEIPT)
    kinds = await harness.gateway.db.fetch(
        "SELECT kind FROM event WHERE kind <> 'payment.mismatched' ORDER BY event_id"
    )
    assert [row["kind"] for row in kinds] == ["payment.completed", "payment.reversed"]
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    # The statement shows the payment's line, which pays for nothing again.
    settled = await settle(harness, report_of(harness, receipt=RECEIPT, reference=made["reference"]))
    assert settled.finding == "already_known"
    assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == expected
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
@pytest.mark.parametrize("code", [None, 1037, 1032])
async def test_statement_line_with_a_reversed_receipt_completes_no_payment(harness: Harness, code: int | None) -> None:
    made = (await harness.api.pay("254711000001", 500, key="a", reference="table 4")).data
    if code is not None:
        await call_back(harness, "stk", made["id"], stk_callback(made["provider_ref"], code))
    assert await query_status(harness, "Reversed") == "not_ours"
    settled = await settle(harness, report_of(harness, receipt=RECEIPT, reference="table 4"))
    assert settled.finding == "not_found"
    status_now = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"]
    assert status_now == ("pending" if code is None else "failed")
    # The payer pays again, and that transaction counts.
    if code != 1032:
        settled = await settle(harness, report_of(harness, receipt="TKN4A1B2C4", reference="table 4"))
        assert (settled.finding, settled.payment_id) == ("recovered", made["id"])
    assert await reversal_events(harness) == []
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
async def test_statement_line_with_a_partly_reversed_receipt_completes_its_payment_for_review(harness: Harness) -> None:
    """Part of the money stayed: the answer needs review, and the payment that gets the receipt does too."""
    made = (await harness.api.pay("254711000001", 500, key="a", reference="table 4")).data
    assert await query_status(harness, "Partially Reversed") == "ambiguous"
    settled = await settle(harness, report_of(harness, receipt=RECEIPT, reference="table 4"))
    assert (settled.finding, settled.payment_id) == ("recovered", made["id"])
    assert await harness.gateway.services.get(ExternalReversals).apply_recorded() in {0, 1}
    row = await harness.gateway.db.fetchrow("SELECT * FROM payment")
    assert row is not None
    assert (row["status"], row["receipt"], row["reversed_outside"]) == ("completed", RECEIPT, "part")
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
async def test_outside_reversal_of_another_amount_needs_review(harness: Harness) -> None:
    made = (await harness.api.pay("254711000001", 700, key="a")).data
    assert await query_status(harness, "Reversed", made["id"]) == "mismatched"
    assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1


@initiated
@pytest.mark.parametrize("report", ["callback", "statement"])
async def test_report_of_another_amount_under_a_paid_receipt_needs_review(harness: Harness, report: str) -> None:
    payment_id = await complete_payment(harness)
    if report == "callback":
        made = (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data
        await call_back(harness, "stk", payment_id, stk_callback(made["provider_ref"], amount=5, receipt=RECEIPT))
    else:
        settled = await settle(harness, report_of(harness, receipt=RECEIPT, amount=Kes(5)))
        assert settled.finding == "mismatched"
    row = await harness.gateway.db.fetchrow("SELECT * FROM payment")
    assert row is not None
    assert (row["status"], row["mismatch"], row["received_receipt"]) == ("completed", "amount", RECEIPT)
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    assert needs_review(row)


@initiated
async def test_report_of_the_right_amount_after_a_wrong_one_clears_the_mismatch(harness: Harness) -> None:
    made = (await harness.api.pay("254711000001", 500, key="a")).data
    await call_back(harness, "stk", made["id"], stk_callback(made["provider_ref"], amount=5, receipt=RECEIPT))
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    settled = await settle(harness, report_of(harness, receipt=RECEIPT, reference=made["reference"]))
    assert settled.finding == "recovered"
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 0


@initiated
async def test_report_of_a_further_mismatch_after_a_review_needs_review_again(harness: Harness) -> None:
    payment_id = await complete_payment(harness)
    operators = harness.gateway.services.get(PaymentOperatorService)
    for number, report in enumerate(
        (
            report_of(harness, receipt=RECEIPT, amount=Kes(5)),
            report_of(harness, receipt=RECEIPT, amount=Kes(7)),
            report_of(harness, receipt=RECEIPT, amount=Kes(9)),
        )
    ):
        assert (await settle(harness, report)).finding == "mismatched"
        assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1, number
        await operators.resolve(payment_id, "The till was right", actor="operator:test")
        # The same report again adds nothing.
        await settle(harness, report)
        assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 0, number


# -- the same receipt in two transactions at the same time ----------------------------------------------------------


async def payment_query_and_line(harness: Harness, number: int) -> tuple[Any, str, Evidence]:
    """A payment, a status query about its receipt, and the statement line of its money."""
    receipt = f"RACE{number:06}"
    made = (await harness.api.pay("254711000001", 500, key=receipt, reference=f"table {number}")).data
    check = (await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{receipt}")).data
    return made, check["check_id"], report_of(harness, receipt=receipt, reference=f"table {number}")


async def checked_status(harness: Harness, payment_id: str) -> str:
    """The payment's status, after a check that its events fit: none without the money, both with it."""
    row = await harness.gateway.db.fetchrow("SELECT * FROM payment WHERE payment_id = $1", payment_id)
    assert row is not None
    kinds = await harness.gateway.db.fetch("SELECT kind FROM event WHERE subject_id = $1 ORDER BY event_id", payment_id)
    events = [one["kind"] for one in kinds]
    assert events == ([] if row["receipt"] is None else ["payment.completed", "payment.reversed"]), row["status"]
    assert row["status"] == ("pending" if row["receipt"] is None else "reversed")
    return str(row["status"])


def reversed_receipt(number: int) -> dict[str, Any]:
    """M-Pesa's result that this receipt was reversed."""
    body = status_result("Reversed")
    parameters: list[dict[str, Any]] = body["Result"]["ResultParameters"]["ResultParameter"]
    next(one for one in parameters if one["Key"] == "ReceiptNo")["Value"] = f"RACE{number:06}"
    return body


@initiated
@pytest.mark.parametrize("by", ["statement", "callback"])
@pytest.mark.parametrize("first", ["money", "reversal"])
async def test_money_and_its_reversal_in_overlapping_transactions_publish_both(
    harness: Harness, by: str, first: str
) -> None:
    made, check_id, report = await payment_query_and_line(harness, 1)
    callback = stk_callback(made["provider_ref"], receipt="RACE000001")
    outside = harness.gateway.services.get(ExternalReversals)
    if by == "callback" and first == "reversal":
        # The callback is late.
        await call_back(harness, "status", check_id, reversed_receipt(1))
        await call_back(harness, "stk", made["id"], callback)
    elif by == "callback":
        await call_back(harness, "stk", made["id"], callback)
        await call_back(harness, "status", check_id, reversed_receipt(1))
    elif first == "money":
        async with harness.gateway.db.transaction():
            settled = await harness.gateway.services.get(StatementMatching).apply(report)
            # The uncommitted money is invisible when M-Pesa's result is processed.
            await call_back(harness, "status", check_id, reversed_receipt(1))
        assert settled.finding == "recovered"
    else:
        async with harness.gateway.db.transaction():
            await outside.record(Receiver("sandbox", "174379"), "RACE000001", "reversed")
            await asyncio.create_task(settle(harness, report), context=Context())
    await outside.apply_recorded()
    assert await checked_status(harness, made["id"]) == "reversed"
    assert await outside.apply_recorded() == 0
    assert await settle(harness, report) == Settled("already_known", made["id"], made["merchant_id"])
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
async def test_outside_reversal_of_the_whole_overrides_one_of_a_part(
    harness: Harness,
) -> None:
    outside = harness.gateway.services.get(ExternalReversals)
    cases: tuple[tuple[TransactionState, ...], ...] = (("partially_reversed",), ("partially_reversed", "reversed"))
    for number, states in enumerate(cases):
        made, _, report = await payment_query_and_line(harness, number)
        later: TransactionState = "partially_reversed"
        for state in (*states, later):
            async with harness.gateway.db.transaction():
                await outside.record(Receiver("sandbox", "174379"), f"RACE{number:06}", state)
        callback = stk_callback(made["provider_ref"], receipt=f"RACE{number:06}")
        await call_back(harness, "stk", made["id"], callback)
        await outside.apply_recorded()
        of = await harness.gateway.db.fetchval("SELECT reversed_outside FROM payment WHERE payment_id = $1", made["id"])
        assert of == ("part" if len(states) == 1 else "whole")
        assert (await settle(harness, report)).finding == "already_known"


@initiated
async def test_money_and_its_reversal_at_the_same_time_leave_no_half_state(harness: Harness) -> None:
    chance = random.Random(13)  # noqa: S311 - a test's order
    outside, seen = harness.gateway.services.get(ExternalReversals), Counter[str]()
    for number in range(40):
        made, check_id, report = await payment_query_and_line(harness, number)

        async def line(report: Evidence = report, pause: float = chance.random() / 100) -> None:
            await asyncio.sleep(pause)
            await settle(harness, report)

        async def answer(check_id: str = check_id, number: int = number) -> None:
            await call_back(harness, "status", check_id, reversed_receipt(number))

        await asyncio.gather(line(), answer(), outside.apply_recorded())
        await asyncio.gather(*(outside.apply_recorded() for _ in range(3)))
        seen[await checked_status(harness, made["id"])] += 1
    assert seen.total() == 40
    assert await violations(harness, *PAYMENTS, *REFUNDS) == []


@initiated
async def test_outside_reversal_noted_before_a_refund_leaves_the_refund_alone(harness: Harness) -> None:
    made, check_id, _ = await payment_query_and_line(harness, 1)
    await call_back(harness, "status", check_id, reversed_receipt(1))
    await call_back(harness, "stk", made["id"], stk_callback(made["provider_ref"], receipt="RACE000001"))
    assert (await harness.api.call("POST", "/v1/refunds", {"payment_id": made["id"]})).status == 201
    assert await harness.gateway.services.get(ExternalReversals).apply_recorded() == 0
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM outgoing_receipt") == 0
    assert await reversal_events(harness) == []
