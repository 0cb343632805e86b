"""Protects the invariants of refunds: each violation is reported."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import INITIATED, eventually
from mpesa_gateway_refunds.plugin import plugin
from tests.conftest import Harness
from tests.identifiers import literal
from tests.ledger import drop_constraints, find_missed_corruptions
from tests.loose_money import receive_loose

initiated = pytest.mark.usefixtures("initiated")

VIOLATIONS = {
    "refunds.sums_are_the_payments": """
        UPDATE payment SET refunded = 99 WHERE idempotency_key = 'back-1' RETURNING payment_id;
        UPDATE payment SET refund_reserved = 1 WHERE idempotency_key = 'back-2' RETURNING payment_id
    """,
    "refunds.fits_its_payment": """
        UPDATE refund SET original_amount = 999 WHERE idempotency_key = 'refund back-3' RETURNING refund_id;
        UPDATE refund SET receipt = 'TKN4A1B2C3' WHERE idempotency_key = 'refund back-4' RETURNING refund_id;
        UPDATE refund SET env = 'live' WHERE idempotency_key = 'refund back-5' RETURNING refund_id
    """,
    "refunds.sums_are_the_transactions": """
        UPDATE transaction SET refunded_cents = 4999 WHERE account_number = 'loose-1' RETURNING transaction_id;
        UPDATE transaction SET refund_reserved_cents = 100 WHERE account_number = 'loose-2' RETURNING transaction_id
    """,
    "refunds.fits_its_transaction": """
        UPDATE refund SET original_amount = 999 WHERE reason = 'loose-3' RETURNING refund_id;
        UPDATE refund SET receipt = 'LOOSE99999' WHERE reason = 'loose-4' RETURNING refund_id
    """,
    "refunds.completed_was_published": """
        DELETE FROM event USING refund WHERE subject_id = transaction_id AND event.kind = 'transaction.refunded'
        AND reason = 'loose-5' RETURNING refund_id;
        UPDATE event SET form_id = NULL, stored_body = replace(event.body, '"rfd_', '"rfx_') FROM refund
        WHERE subject_id = payment_id AND kind = 'payment.reversed' AND idempotency_key = 'refund back-6'
        RETURNING refund_id
    """,
    "refunds.failed_was_published": """
        DELETE FROM event USING refund WHERE subject_id = refund_id AND idempotency_key = 'refund never-1'
        RETURNING refund_id
    """,
    "refunds.pending_is_due": """
        UPDATE refund SET due_at = NULL WHERE idempotency_key = 'refund silent-1' RETURNING refund_id
    """,
    "refunds.nothing_overdue": """
        UPDATE refund SET due_at = now() - interval '11 minutes', status = 'failed', outcome = 'other'
        WHERE idempotency_key = 'refund never-2' RETURNING refund_id
    """,
    "refunds.env_is_its_refunds": """
        UPDATE idempotency_key SET env = 'live' FROM refund
        WHERE subject_id = refund_id AND idempotency_key = 'refund silent-1' RETURNING subject_id
    """,
    "refunds.key_names_its_refund": f"""
        UPDATE idempotency_key SET digest = gen_random_uuid(), subject_id = {literal("rfd", 1)} FROM refund
        WHERE subject_id = refund_id AND idempotency_key = 'refund back-7' RETURNING subject_id;
        UPDATE idempotency_key SET subject_id = {literal("run")} FROM refund
        WHERE subject_id = refund_id AND idempotency_key = 'refund back-8' RETURNING refund_id;
        UPDATE idempotency_key SET state = 'in_flight' FROM refund
        WHERE subject_id = refund_id AND idempotency_key = 'refund silent-2' RETURNING refund_id;
        UPDATE idempotency_key SET state = 'released' FROM refund
        WHERE subject_id = refund_id AND idempotency_key = 'refund never-3' RETURNING refund_id
    """,  # noqa: S608 - ids that the test chose
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"refunds.{invariant.name}" for invariant in plugin.invariants}


async def create_refund(harness: Harness, key: str, number: int) -> str:
    """Complete a payment and refund a part of it; returns the refund's id."""
    made = (await harness.api.pay(f"2547110{number:05d}", 500, key=key)).data
    await harness.api.settled(made["id"], "completed")
    body = {"payment_id": made["id"], "amount": 100}
    answer = await harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": f"refund {key}"})
    refund_id: str = answer.data["id"]
    return refund_id


async def refund_loose(harness: Harness, name: str) -> str:
    """Receive money that names no payment and refund it; returns the refund's id."""
    walk_in = {"phone": "254711000099", "amount": 500, "shortcode": "174379", "reference": name}
    receipt = (await harness.api.call("POST", "/simulator/control/ledger", walk_in)).data["receipt"]
    body = {"transaction_id": await receive_loose(harness, receipt, account_number=name), "reason": name}
    refund_id: str = (await harness.api.call("POST", "/v1/refunds", body)).data["id"]
    return refund_id


async def await_status(harness: Harness, refund_id: str, status: str) -> None:
    """Wait until a refund has this status."""

    async def has_status() -> Any:
        return (await harness.api.call("GET", f"/v1/refunds/{refund_id}")).data["status"] == status

    await eventually(has_status)


async def set_initiator(harness: Harness, initiator: str) -> None:
    """Store the credentials with this initiator: its name decides how the simulator answers reversals."""
    changed = {"provider": "mpesa", "mpesa": INITIATED["mpesa"] | {"initiator": initiator}}
    assert (await harness.api.call("PUT", "/v1/merchant/providers", changed)).status == 200


@initiated
async def test_invariants_report_each_violation_and_nothing_else(harness: Harness) -> None:
    for number, key in enumerate(f"back-{count}" for count in range(1, 9)):
        await await_status(harness, await create_refund(harness, key, number), "completed")
    for number in range(1, 6):
        await await_status(harness, await refund_loose(harness, f"loose-{number}"), "completed")
    await set_initiator(harness, "locked")
    for number, key in enumerate(("never-1", "never-2", "never-3"), 20):
        await await_status(harness, await create_refund(harness, key, number), "failed")
    await set_initiator(harness, "testapi")
    assert (await harness.api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})).status == 200
    for number, key in enumerate(("silent-1", "silent-2"), 30):
        await await_status(harness, await create_refund(harness, key, number), "pending")
    await drop_constraints(harness.gateway)
    also = {"refunds.fits_its_payment": "refunds.env_is_its_refunds"}
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS, also) == {}
