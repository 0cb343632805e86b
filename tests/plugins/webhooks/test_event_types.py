"""Protects the event types of an endpoint: later events of others are cancelled and replayable; tests always arrive."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.env import ENVS
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_webhooks.operator_service import WebhookOperatorService
from mpesa_gateway_webhooks.pages import failing_webhooks
from tests.plugins.webhooks.test_waiting import WebhookMerchant, webhook_merchant
from tests.visits import host_visit

WEBHOOK = "/v1/merchant/webhook"


@pytest.fixture
async def merchant(values: dict[str, Any]) -> AsyncGenerator[WebhookMerchant]:
    """A merchant without a worker."""
    async with webhook_merchant(values) as made:
        yield made


async def choose_without_tests(merchant: WebhookMerchant) -> None:
    """Set an endpoint for ``payment.failed`` alone: a test event is then of another type."""
    await merchant.endpoints.set_url(merchant.caller(), merchant.receiver.url, ["payment.failed"])
    await merchant.db.execute("UPDATE webhook_endpoint SET event_types = ARRAY['payment.failed'] WHERE is_active")
    await merchant.deliveries.assign_undelivered()


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
        assert (chosen.status, chosen.data["event_types"]) == (200, ["payment.failed"])
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
        (["payment.paid"], "each event type must be one of account.overpaid, "),
        ([], "choose at least one of account.overpaid, "),
        (["webhook.test"], "choose at least one of account.overpaid, "),
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


async def test_waiting_events_are_sent_whatever_is_chosen_later(merchant: WebhookMerchant) -> None:
    before = await merchant.publish()
    await choose_without_tests(merchant)
    assert await merchant.statuses() == {before: "pending"}
    after = await merchant.publish()
    assert await merchant.statuses() == {before: "pending", after: "cancelled"}
    await merchant.endpoints.set_event_types(merchant.caller(), None)
    later = await merchant.publish()
    assert await merchant.statuses() == {before: "pending", after: "cancelled", later: "pending"}


async def test_replayed_delivery_survives_a_change_of_endpoint(merchant: WebhookMerchant) -> None:
    await choose_without_tests(merchant)
    event = await merchant.publish()
    assert await merchant.statuses() == {event: "cancelled"}
    replayed = await merchant.deliveries.replay(merchant.caller(), await merchant.delivery_of(event))
    assert (replayed.status, replayed.last_error) == ("pending", None)
    merchant.receiver.status = 500
    await merchant.send()
    await merchant.remove()
    assert await merchant.statuses() == {event: "waiting"}
    await choose_without_tests(merchant)
    assert await merchant.statuses() == {event: "pending"}
    merchant.receiver.status = 200
    await merchant.send()
    assert await merchant.statuses() == {event: "delivered"}


TRANSACTIONS = ("transaction.received", "transaction.refunded", "transaction.reversed")


async def test_choice_without_events_about_money_is_shown_to_operators(merchant: WebhookMerchant) -> None:
    desk = merchant.gateway.services.get(WebhookOperatorService)
    money = merchant.endpoints.money_types
    assert money == ["payment.completed", "payment.mismatched", "payment.reversed", *TRANSACTIONS]
    for chosen, count in ((None, 0), (money, 0), (merchant.endpoints.event_types, 0), (money[1:], 1)):
        await merchant.endpoints.set_url(merchant.caller(), merchant.receiver.url, chosen)
        assert [await desk.count_without_money(env) for env in ENVS] == [count, 0], chosen
    text = "1 webhook endpoint leaves out events about moved money"
    assert text in [item.text for item in await failing_webhooks(host_visit(merchant.gateway))]
    await merchant.gateway.merchants.deactivate(merchant.merchant_id, actor="test")
    assert await desk.count_without_money("sandbox") == 0


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
