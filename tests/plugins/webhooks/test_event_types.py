"""Protects the event types of an endpoint: others are cancelled, kept and replayable; tests always arrive."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from tests.plugins.webhooks.test_waiting import WebhookMerchant, webhook_merchant

WEBHOOK = "/v1/merchant/webhook"


@pytest.fixture
async def merchant(values: dict[str, Any]) -> AsyncGenerator[WebhookMerchant]:
    """A merchant without a worker."""
    async with webhook_merchant(values) as made:
        yield made


async def deliveries(api: Api) -> dict[str, tuple[str, str | None]]:
    """Returns the status and last error of each delivery, by event type."""
    rows = (await api.call("GET", "/v1/webhooks/logs")).data
    return {row["event_type"]: (row["status"], row["last_error"]) for row in rows}


async def test_other_event_types_are_cancelled_and_can_be_replayed(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        chosen = await api.call("PUT", f"{WEBHOOK}/event-types", {"event_types": ["payment.failed"]})
        assert (chosen.status, chosen.data["event_types"]) == (200, ["payment.failed", "webhook.test"])
        assert chosen.data["webhook_url"] == receiver.url
        await api.settled((await api.pay("254711000001", key="paid")).data["id"], "completed")
        await api.settled((await api.pay("254700000001", key="failed")).data["id"], "failed")
        await receiver.wait_for(1, kind="payment.failed")
        assert (await deliveries(api))["payment.completed"] == ("cancelled", "not one of the endpoint's event types")
        assert receiver.of("payment.completed") == []
        assert (await api.call("POST", f"{WEBHOOK}/test")).data["delivered"]
        (cancelled,) = (await api.call("GET", "/v1/webhooks/logs?status=cancelled")).data
        assert (await api.call("POST", f"/v1/webhooks/logs/{cancelled['id']}/replay")).status == 200
        await receiver.wait_for(1, kind="payment.completed")
        # A new address without a choice takes all events.
        again = await api.call("PUT", WEBHOOK, {"webhook_url": receiver.url})
        assert again.status == 200
        assert (await api.call("GET", WEBHOOK)).data["event_types"] is None

        async def is_delivered() -> bool:
            return (await deliveries(api))["payment.completed"][0] == "delivered"

        assert await eventually(is_delivered)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["payment.paid"], "each event type must be one of payment.completed, "),
        ([], "choose at least one of payment.completed, "),
    ],
)
async def test_unknown_or_no_event_type_is_422(merchant: WebhookMerchant, types: list[str], message: str) -> None:
    await merchant.set()
    for change in (
        merchant.endpoints.set_event_types(merchant.caller(), types),
        merchant.endpoints.set_url(merchant.caller(), merchant.receiver.url, types),
    ):
        with pytest.raises(InvalidFields) as refused:
            await change
        (problem,) = refused.value.problems
        assert (problem.field, message in problem.message) == ("event_types", True)


@pytest.mark.parametrize("sent", ["254712345678", "whsec_b3JkZXItMTA0MS1pcy1wYWlkLWJ5LWFtaW5h"])
async def test_refused_event_type_is_not_repeated(merchant: WebhookMerchant, sent: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        await merchant.endpoints.set_url(merchant.caller(), merchant.receiver.url, [sent])
    assert sent[:30] not in str(refused.value)


async def test_waiting_events_of_other_types_are_cancelled_when_the_endpoint_is_set(
    merchant: WebhookMerchant,
) -> None:
    other = await merchant.publish()
    await merchant.endpoints.set_url(merchant.caller(), merchant.receiver.url, ["payment.completed"])
    # Tests always arrive: without them in the list, a test stands for any other type.
    await merchant.db.execute("UPDATE webhook_endpoint SET event_types = ARRAY['payment.completed']")
    await merchant.deliveries.assign_undelivered()
    assert await merchant.statuses() == {other: "cancelled"}
    await merchant.endpoints.set_event_types(merchant.caller(), None)
    later = await merchant.publish()
    assert await merchant.statuses() == {other: "cancelled", later: "pending"}


async def test_delivered_test_proves_the_present_address_only(merchant: WebhookMerchant) -> None:
    await merchant.set()
    egress = merchant.deliveries.egress
    merchant.receiver.status = 500
    assert not (await merchant.endpoints.test(merchant.caller(), egress)).delivered
    assert (await merchant.endpoints.view(merchant.merchant_id, "sandbox")).last_success_at is None
    merchant.receiver.status = 200
    await merchant.db.execute("UPDATE webhook_endpoint SET failures = 30, closed_until = now() + interval '1 hour'")
    assert (await merchant.endpoints.test(merchant.caller(), egress)).delivered
    view = await merchant.endpoints.view(merchant.merchant_id, "sandbox")
    assert view.last_success_at is not None
    assert (view.failures, view.paused_until) == (0, None)
    await merchant.set(path="/another")
    assert (await merchant.endpoints.view(merchant.merchant_id, "sandbox")).last_success_at is None
