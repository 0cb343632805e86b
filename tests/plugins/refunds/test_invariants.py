"""The books of refunds, bent past Postgres' own rules: it shows."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import INITIATED, eventually
from mpesa_gateway_refunds.plugin import plugin
from tests.conftest import Town
from tests.ledger import each_is_noticed, lay_bare

initiated = pytest.mark.usefixtures("initiated")

BENDINGS = {
    "refunds.sums_are_the_payments": """
        UPDATE payment SET refunded = 99 WHERE idempotency_key = 'back-1' RETURNING payment_id;
        UPDATE payment SET refund_reserved = 1 WHERE idempotency_key = 'back-2' RETURNING payment_id
    """,
    "refunds.fits_its_payment": """
        UPDATE refund SET payment_amount = 999 WHERE idempotency_key = 'refund back-3' RETURNING refund_id;
        UPDATE refund SET receipt = 'TKN4A1B2C3' WHERE idempotency_key = 'refund back-4' RETURNING refund_id;
        UPDATE refund SET env = 'live' WHERE idempotency_key = 'refund back-5' RETURNING refund_id
    """,
    "refunds.completed_was_told": """
        UPDATE event SET body = replace(body, '"rfd_', '"rfx_') FROM refund
        WHERE subject_id = payment_id AND kind = 'payment.reversed' AND idempotency_key = 'refund back-6'
        RETURNING refund_id
    """,
    "refunds.failed_was_told": """
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
        UPDATE idempotency_key SET env = 'live' WHERE key = 'refund silent-1' RETURNING subject_id
    """,
    "refunds.key_names_its_refund": """
        UPDATE idempotency_key SET key = 'unknown', subject_id = 'rfd_nowhere' WHERE key = 'refund back-7'
        RETURNING subject_id;
        UPDATE idempotency_key SET subject_id = 'something else' FROM refund
        WHERE key = idempotency_key AND key = 'refund back-8' RETURNING refund_id;
        UPDATE idempotency_key SET state = 'in_flight' FROM refund
        WHERE key = idempotency_key AND key = 'refund silent-2' RETURNING refund_id;
        UPDATE idempotency_key SET state = 'released' FROM refund
        WHERE key = idempotency_key AND key = 'refund never-3' RETURNING refund_id
    """,
}


def test_every_invariant_is_bent() -> None:
    assert set(BENDINGS) == {f"refunds.{invariant.name}" for invariant in plugin.invariants}


async def refund(town: Town, key: str, number: int) -> str:
    """A refund of a part of a payment of its own."""
    made = (await town.api.pay(f"2547110{number:05d}", 500, key=key)).data
    await town.api.settled(made["id"], "completed")
    body = {"payment_id": made["id"], "amount": 100}
    asked = await town.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": f"refund {key}"})
    refund_id: str = asked.data["id"]
    return refund_id


async def stands(town: Town, refund_id: str, status: str) -> None:
    """Wait until a refund has this status."""

    async def look() -> Any:
        return (await town.api.call("GET", f"/v1/refunds/{refund_id}")).data["status"] == status

    await eventually(look)


async def become(town: Town, initiator: str) -> None:
    """Store the credentials with this initiator: its name decides how the simulator ends reversals."""
    changed = {"provider": "mpesa", "mpesa": INITIATED["mpesa"] | {"initiator": initiator}}
    assert (await town.api.call("PUT", "/v1/merchant/providers", changed)).status == 200


@initiated
async def test_whatever_is_bent_shows_and_nothing_else_does(town: Town) -> None:
    for number, key in enumerate(f"back-{count}" for count in range(1, 9)):
        await stands(town, await refund(town, key, number), "completed")
    await become(town, "locked")
    for number, key in enumerate(("never-1", "never-2", "never-3"), 20):
        await stands(town, await refund(town, key, number), "failed")
    await become(town, "testapi")
    assert (await town.api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})).status == 200
    for number, key in enumerate(("silent-1", "silent-2"), 30):
        await stands(town, await refund(town, key, number), "pending")
    await lay_bare(town.gateway)
    also = {"refunds.fits_its_payment": "refunds.env_is_its_refunds"}
    assert await each_is_noticed(town.gateway, BENDINGS, also) == {}
