"""Protects `payments.confirm`: a forged callback at a leaked address costs one status query and moves no money."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.conftest import Harness

ASKS = "254700000020"


@pytest.fixture(params=["always", "mismatch"])
def values(values: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Results that M-Pesa has to confirm."""
    return values | {"payments": {"confirm": request.param, "query_after": [1]}}


async def prompted(harness: Harness, amount: int = 500) -> tuple[str, str]:
    """Return a payment with an open prompt: its id and the checkout request id."""
    made = (await harness.api.pay(ASKS, amount, key="order")).data
    return made["id"], made["provider_ref"]


async def forge(harness: Harness, checkout_request_id: str, amount: int) -> None:
    """Post a forged success at the leaked address."""
    path = f"/simulator/control/pushes/{checkout_request_id}/forge"
    assert (await harness.api.call("POST", path, {"amount": amount})).data == {"status": 200}


async def sweep(harness: Harness) -> None:
    """Run the due status queries."""
    await harness.gateway.services.get(StkQueries).enqueue_due()


async def steps(harness: Harness, payment_id: str) -> list[str]:
    """Return the steps of a payment's timeline."""
    found = (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data
    return [step["kind"] for step in found["timeline"]]


async def test_forged_success_refuted_by_mpesa_does_not_complete(harness: Harness) -> None:
    payment_id, prompt = await prompted(harness)
    await forge(harness, prompt, 501)
    assert (await steps(harness, payment_id))[-1] == "confirming"
    await harness.api.call("POST", f"/simulator/control/pushes/{prompt}/answer", {"answer": "cancel"})
    ended = await harness.api.settled(payment_id)
    assert (ended["status"], ended["mismatch"]) == ("failed", None)
    assert "completed" not in await steps(harness, payment_id)
    assert [one.headers["x-event-type"] for one in await harness.receiver.wait_for(1)] == ["payment.failed"]


async def test_success_confirmed_by_mpesa_keeps_the_values_of_the_callback(harness: Harness) -> None:
    made = (await harness.api.pay("254711000001", 500, key="order")).data
    paid = await harness.api.settled(made["id"], "completed")
    (entry,) = (await harness.api.call("GET", "/simulator/control/ledger")).data
    assert (paid["receipt"], paid["amount"]) == (entry["receipt"], "500.00")


async def test_success_unconfirmed_in_time_needs_review(harness: Harness) -> None:
    payment_id, prompt = await prompted(harness)
    await forge(harness, prompt, 501)
    await harness.gateway.db.execute("UPDATE payment SET expires_at = now(), due_at = now()")
    await sweep(harness)

    async def held() -> Any:
        return (await harness.api.call("GET", f"/v1/payments/{payment_id}")).data["mismatch"]

    found = await eventually(held)
    assert (found["of"], found["received_amount"]) == ("unconfirmed", "501.00")
    webhook = (await harness.receiver.wait_for(1))[0]
    assert webhook.headers["x-event-type"] == "payment.mismatched"
