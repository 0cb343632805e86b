"""Protects the payment's timeline: composed from its columns, with stored steps for exceptions only."""

from tests.conftest import Harness

PAID, DECLINED = "254711000001", "254700000001"


async def kinds_and_causes(harness: Harness, payment_id: str) -> list[tuple[str, str]]:
    timeline = (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data["timeline"]
    return [(step["kind"], step["cause"]) for step in timeline]


async def stored_kinds(harness: Harness, payment_id: str) -> list[str]:
    rows = await harness.gateway.db.fetch(
        "SELECT kind FROM payment_step WHERE payment_id = $1 ORDER BY number", payment_id
    )
    return [row["kind"] for row in rows]


async def test_timeline_of_an_ordinary_payment_stores_no_steps(harness: Harness) -> None:
    made = (await harness.api.pay(PAID, key="paid")).data
    settled = await harness.api.settled(made["id"], "completed")
    assert set(await kinds_and_causes(harness, made["id"])) == {
        ("requested", "merchant"),
        ("sent", "ack"),
        ("completed", "callback"),
    }
    assert await stored_kinds(harness, made["id"]) == []
    timeline = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["timeline"]
    completed = next(step for step in timeline if step["kind"] == "completed")
    assert completed == {
        "at": settled["completed_at"],
        "kind": "completed",
        "cause": "callback",
        "result_code": settled["result_code"],
        "detail": settled["result_desc"],
    }


async def test_timeline_of_a_failed_payment_stores_its_failure_alone(harness: Harness) -> None:
    made = (await harness.api.pay(DECLINED, key="declined")).data
    await harness.api.settled(made["id"], "failed")
    assert ("failed", "callback") in await kinds_and_causes(harness, made["id"])
    assert await stored_kinds(harness, made["id"]) == ["failed"]
