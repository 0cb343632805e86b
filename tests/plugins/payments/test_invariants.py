"""Protects the invariants of payments: they hold while money moves, and each violation is reported."""

import asyncio

import pytest

from mpesa_gateway_payments.plugin import plugin
from tests.conftest import Harness
from tests.identifiers import literal
from tests.ledger import broken_invariants, drop_constraints, find_missed_corruptions

initiated = pytest.mark.usefixtures("initiated")

PAID, DECLINED, ASKED, ELSEWHERE = "25471100000", "254700000001", "254700000020", "254700000011"

VIOLATIONS = {
    "payments.change_has_one_event": f"""
        INSERT INTO event (event_id, kind, merchant_id, subject_id, occurred_at, is_public, payload, env)
        SELECT {literal("evt", 1)}, 'payment.completed', merchant_id, payment_id, now(), false, '{{}}', env
        FROM payment WHERE idempotency_key = 'paid-1' RETURNING subject_id;
        INSERT INTO event (event_id, kind, merchant_id, subject_id, occurred_at, is_public, payload, env)
        SELECT {literal("evt", 2)}, 'payment.failed', merchant_id, payment_id, now(), false, '{{}}', env
        FROM payment WHERE idempotency_key = 'asked-1' RETURNING subject_id;
        DELETE FROM event USING payment WHERE subject_id = payment_id AND idempotency_key = 'paid-2'
        AND kind = 'payment.completed' RETURNING payment_id
    """,  # noqa: S608 - ids that the test chose
    "payments.status_is_its_timelines": """
        UPDATE payment SET status = 'reversed' WHERE idempotency_key = 'paid-3' RETURNING payment_id;
        UPDATE payment SET status = 'failed', failure_reason = 'other', due_at = NULL
        WHERE idempotency_key = 'asked-2' RETURNING payment_id;
        UPDATE payment SET status = 'pending', due_at = now() WHERE idempotency_key = 'declined-1' RETURNING payment_id
    """,
    "payments.completed_has_its_time": """
        UPDATE payment SET completed_at = NULL WHERE idempotency_key = 'paid-4' RETURNING payment_id;
        UPDATE payment SET completed_at = now() WHERE idempotency_key = 'asked-3' RETURNING payment_id
    """,
    "payments.receipt_pays_once": """
        UPDATE payment SET receipt = other.receipt FROM payment AS other
        WHERE payment.idempotency_key = 'paid-5' AND other.idempotency_key = 'paid-6'
        RETURNING 'sandbox ' || payment.receipt
    """,
    "payments.receipt_is_its_transaction": """
        UPDATE transaction SET amount_cents = 1 FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-12' RETURNING payment_id;
        DELETE FROM transaction USING payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-13' RETURNING payment_id;
        UPDATE transaction SET conflict_id = payment_id FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-14' RETURNING transaction_id
    """,
    "payments.money_is_its_receivers": f"""
        WITH other AS (
            INSERT INTO receiver (receiver_id, env, number, kind, created_at)
            VALUES ({literal("rcv")}, 'sandbox', '600000', 'paybill', now()) RETURNING receiver_id
        )
        UPDATE transaction SET receiver_id = other.receiver_id FROM other, payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-11' RETURNING transaction_id
    """,  # noqa: S608 - ids that the test chose
    "payments.reversed_receipt_is_applied": """
        INSERT INTO outgoing_receipt (env, number, receipt, noted_at)
        SELECT env, shortcode, receipt, now() - interval '11 minutes' FROM payment WHERE idempotency_key = 'paid-10'
        RETURNING (SELECT payment_id FROM payment WHERE idempotency_key = 'paid-10')
    """,
    "payments.refunds_fit": """
        UPDATE payment SET refunded = amount, refund_reserved = 1 WHERE idempotency_key = 'paid-7' RETURNING payment_id
    """,
    "payments.mismatch_was_published": """
        UPDATE payment SET mismatch = 'phone' WHERE idempotency_key = 'paid-8' RETURNING payment_id
    """,
    "payments.success_counts": """
        UPDATE callback SET result_code = '0' FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'declined-2' RETURNING payment_id;
        UPDATE callback SET result_code = '0', subject_id = NULL FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'declined-3' RETURNING payment_id
    """,
    "payments.pending_is_due": """
        UPDATE payment SET due_at = NULL WHERE idempotency_key = 'asked-4' RETURNING payment_id
    """,
    "payments.nothing_overdue": """
        UPDATE payment SET due_at = now() - interval '11 minutes', claim = '{}', checkout_request_id = NULL
        WHERE idempotency_key = 'asked-5' RETURNING payment_id
    """,
    "payments.key_names_its_payment": f"""
        UPDATE idempotency_key SET digest = gen_random_uuid(), subject_id = {literal("pay", 1)} FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-9' RETURNING subject_id;
        UPDATE idempotency_key SET subject_id = {literal("run")} FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-10' RETURNING payment_id
    """,  # noqa: S608 - ids that the test chose
    "payments.key_is_settled": """
        UPDATE idempotency_key SET state = 'in_flight' FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'paid-11' RETURNING payment_id;
        UPDATE idempotency_key SET state = 'released' FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'asked-6' RETURNING payment_id
    """,
    "payments.env_is_its_payments": """
        UPDATE idempotency_key SET env = 'live' FROM payment
        WHERE subject_id = payment_id AND idempotency_key = 'asked-5' RETURNING subject_id
    """,
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"payments.{invariant.name}" for invariant in plugin.invariants}


@initiated
async def test_invariants_report_each_violation_and_nothing_else(harness: Harness) -> None:
    wanted = [
        *((f"paid-{number}", f"{PAID}{number:04d}"[:12], "completed") for number in range(1, 15)),
        *((f"declined-{number}", DECLINED, "failed") for number in range(1, 4)),
        *((f"asked-{number}", ASKED, "pending") for number in range(1, 7)),
    ]
    made = {key: (await harness.api.pay(phone, key=key)).data["id"] for key, phone, _ in wanted}
    for key, _, status in wanted:
        if status != "pending":
            await harness.api.settled(made[key], status)
    await drop_constraints(harness.gateway)
    also = {
        "payments.refunds_fit": "refunds.sums_are_the_payments",
        "payments.receipt_pays_once": "payments.receipt_is_its_transaction",
    }
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS, also) == {}


@initiated
async def test_invariants_hold_while_payments_and_refunds_run(harness: Harness) -> None:
    is_done = asyncio.Event()

    async def move_money() -> None:
        for number in range(12):
            phone = (f"{PAID}{number:04d}"[:12], DECLINED, ELSEWHERE)[number % 3]
            made = (await harness.api.pay(phone, 300 + number, key=f"flow-{number}")).data
            if number % 3 == 0:
                await harness.api.settled(made["id"], "completed")
                part = {"payment_id": made["id"], "amount": 100}
                key = {"Idempotency-Key": f"part-{number}"}
                assert (await harness.api.call("POST", "/v1/refunds", part, headers=key)).status == 201
        await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})
        is_done.set()

    moving = asyncio.create_task(move_money())
    rounds = 0
    while not is_done.is_set():
        assert await broken_invariants(harness.gateway) == {}
        rounds += 1
        assert not moving.done() or moving.exception() is None
    await moving
    assert rounds > 1
    assert await harness.gateway.db.fetchval("SELECT count(DISTINCT status) FROM payment") >= 3
    assert await broken_invariants(harness.gateway) == {}
