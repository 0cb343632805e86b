"""Protects events without an endpoint: they wait for the next endpoint of their merchant and env."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_webhooks import endpoint_tables, tables
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.events import WebhookTest
from mpesa_gateway_webhooks.operator_service import WebhookOperatorService
from mpesa_gateway_webhooks.pages import failing_webhooks
from mpesa_gateway_webhooks.schemas import DeliveryQuery, ReplayMany
from tests.visits import host_visit


class WebhookMerchant:
    """One merchant's webhooks in both envs, without a worker: the test runs each step."""

    def __init__(self, gateway: Gateway, merchant_id: str, receiver: Receiver) -> None:
        self.gateway = gateway
        self.db = gateway.db
        self.merchant_id = merchant_id
        self.receiver = receiver
        self.deliveries = gateway.services.get(DeliveryService)
        self.endpoints = gateway.services.get(EndpointService)

    def caller(self, env: Env = "sandbox") -> Caller:
        return Caller(self.merchant_id, "key_1", frozenset(), env)

    async def publish(self, env: Env = "sandbox") -> str:
        """Publish an event for the merchant; returns its id."""
        async with self.db.transaction():
            event = WebhookTest(merchant_id=self.merchant_id, env=env, subject_id=self.merchant_id)
            return (await self.gateway.outbox.publish([event]))[0].event_id

    async def set(self, env: Env = "sandbox", path: str = "") -> None:
        """Set the endpoint and run the job that follows."""
        url = f"{self.receiver.url}{path}" if env == "sandbox" else f"https://shop.example.co.ke/{path}"
        await self.endpoints.set_url(self.caller(env), url)
        await self.deliveries.assign_undelivered()

    async def remove(self, env: Env = "sandbox") -> None:
        """Remove the endpoint and run the job that follows."""
        await self.endpoints.remove(self.caller(env))
        await self.deliveries.assign_undelivered()

    async def statuses(self) -> dict[str, str]:
        """The status of each delivery, by its event."""
        rows = await self.db.fetch("SELECT event_id, status FROM delivery")
        assert len({row["event_id"] for row in rows}) == len(rows)
        return {row["event_id"]: row["status"] for row in rows}

    async def send(self) -> None:
        """Send all pending deliveries."""
        rows = await self.db.fetch("SELECT delivery_id FROM delivery WHERE status = 'pending'")
        await self.deliveries.deliver([row["delivery_id"] for row in rows])

    async def delivery_of(self, event_id: str) -> str:
        """The id of the event's delivery."""
        return str(await self.db.fetchval("SELECT delivery_id FROM delivery WHERE event_id = $1", event_id))

    def received_ids(self) -> list[str]:
        """The ids of the events that the server received, sorted."""
        return sorted(one.headers["webhook-id"] for one in self.receiver.received)


@asynccontextmanager
async def webhook_merchant(values: dict[str, Any], **options: Any) -> AsyncGenerator[WebhookMerchant]:
    """A gateway without a worker, a merchant and its server."""
    values["worker"] = {"in_process": False}
    async with receiving() as receiver, running_gateway(values, **options) as (gateway, _):
        merchant = await gateway.merchants.create("Shop", actor="test")
        yield WebhookMerchant(gateway, merchant.merchant_id, receiver)


@pytest.fixture
async def merchant(values: dict[str, Any]) -> AsyncGenerator[WebhookMerchant]:
    """The same with the real clock."""
    async with webhook_merchant(values) as made:
        yield made


async def test_event_waits_for_the_first_endpoint_of_its_env(merchant: WebhookMerchant) -> None:
    here, there = await merchant.publish("sandbox"), await merchant.publish("live")
    assert await merchant.statuses() == {here: "waiting", there: "waiting"}
    await merchant.set("live")
    assert await merchant.statuses() == {here: "waiting", there: "pending"}
    await merchant.remove("live")
    await merchant.set("sandbox")
    assert await merchant.statuses() == {here: "pending", there: "waiting"}
    await merchant.send()
    assert merchant.received_ids() == [here]
    assert await merchant.statuses() == {here: "delivered", there: "waiting"}


async def test_undelivered_events_of_a_removed_endpoint_go_to_the_next(merchant: WebhookMerchant) -> None:
    await merchant.set()
    merchant.receiver.status = 500
    failed = await merchant.publish()
    await merchant.send()
    fresh = await merchant.publish()
    await merchant.remove()
    later = await merchant.publish()
    assert set((await merchant.statuses()).values()) == {"waiting"}
    merchant.receiver.status = 200
    merchant.receiver.received.clear()
    await merchant.set(path="/second")
    await merchant.send()
    assert merchant.received_ids() == sorted([failed, fresh, later])
    assert await merchant.statuses() == dict.fromkeys((failed, fresh, later), "delivered")
    assert await merchant.db.fetchval("SELECT count(DISTINCT endpoint_id) FROM delivery") == 1
    # Delivered events are not sent again.
    await merchant.remove()
    await merchant.set(path="/third")
    await merchant.send()
    assert len(merchant.receiver.received) == 3


async def test_replay_uses_the_present_endpoint(merchant: WebhookMerchant) -> None:
    await merchant.set()
    taken = await merchant.publish()
    await merchant.send()
    await merchant.remove()
    everything = ReplayMany(since=merchant.gateway.clock.now() - timedelta(hours=1))
    with pytest.raises(Conflict, match="no sandbox webhook is set"):
        await merchant.deliveries.replay_many(merchant.caller(), everything)
    with pytest.raises(Conflict, match="no sandbox webhook is set"):
        await merchant.deliveries.replay(merchant.caller(), await merchant.delivery_of(taken))
    waits = await merchant.publish()
    await merchant.endpoints.set_url(merchant.caller(), f"{merchant.receiver.url}/second")
    # Before the job has run, a replay includes waiting events.
    assert (await merchant.deliveries.replay_many(merchant.caller(), everything)).replayed == 2
    merchant.receiver.received.clear()
    await merchant.send()
    assert merchant.received_ids() == sorted([taken, waits])
    assert {one.path for one in merchant.receiver.received} == {"/webhooks/second"}


async def test_endpoint_and_secret_exist_per_env(merchant: WebhookMerchant) -> None:
    made = {
        env: await merchant.endpoints.set_url(merchant.caller(env), f"https://{env}.example.co.ke/x") for env in ENVS
    }
    assert made["sandbox"].webhook_secret != made["live"].webhook_secret
    rotated = await merchant.endpoints.rotate(merchant.caller("sandbox"))
    assert (rotated.env, rotated.webhook_url) == ("sandbox", "https://sandbox.example.co.ke/x")
    live = await merchant.endpoints.view(merchant.merchant_id, "live")
    assert (live.webhook_url, live.webhook_secret) == (
        "https://live.example.co.ke/x",
        f"****{made['live'].webhook_secret[-4:]}",
    )
    assert live.previous_secret_until is None
    await merchant.endpoints.set_url(merchant.caller("sandbox"), "https://elsewhere.example.co.ke/x")
    await merchant.endpoints.remove(merchant.caller("sandbox"))
    assert await merchant.endpoints.view(merchant.merchant_id, "live") == live
    with pytest.raises(NotFound, match="no sandbox webhook is set"):
        await merchant.endpoints.view(merchant.merchant_id, "sandbox")
    with pytest.raises(NotFound):
        await merchant.endpoints.rotate(merchant.caller("sandbox"))


async def test_event_waiting_too_long_is_dead_and_can_be_replayed(
    values: dict[str, Any], frozen_clock: SetClock
) -> None:
    values["webhooks"] = {"wait_days": 30}
    async with webhook_merchant(values, clock=frozen_clock) as merchant:
        old = await merchant.publish()
        frozen_clock.advance(timedelta(days=30, seconds=1))
        young = await merchant.publish()
        frozen_clock.advance(timedelta(days=30))
        assert [concern.to for concern in await failing_webhooks(host_visit(merchant.gateway))] == [
            "webhooks/deliveries?status=waiting"
        ]
        await merchant.set()
        assert await merchant.statuses() == {old: "dead", young: "pending"}
        await merchant.deliveries.replay(merchant.caller(), await merchant.delivery_of(old))
        await merchant.send()
        assert merchant.received_ids() == sorted([old, young])


async def test_waiting_events_are_shown_to_operators(merchant: WebhookMerchant) -> None:
    operators = merchant.gateway.services.get(WebhookOperatorService)
    assert [await operators.waiting(env) for env in ENVS] == [(0, None), (0, None)]
    await merchant.publish("live")
    await merchant.publish("live")
    assert (await operators.waiting("sandbox"), (await operators.waiting("live"))[0]) == ((0, None), 1)
    assert [concern.text for concern in await failing_webhooks(host_visit(merchant.gateway, "live"))] == [
        "1 merchant with events and no live webhook endpoint"
    ]
    await merchant.set("live")
    assert await operators.waiting("live") == (0, None)


async def test_assign_undelivered_in_batches_gives_each_merchant_its_own_events(
    merchant: WebhookMerchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpesa_gateway_webhooks.deliveries.SWEEP", 3)
    other = await merchant.gateway.merchants.create("Other", actor="test")
    theirs = WebhookMerchant(merchant.gateway, other.merchant_id, merchant.receiver)
    mine = {await merchant.publish() for _ in range(8)}
    not_mine = {await theirs.publish() for _ in range(7)}
    await merchant.set()
    statuses = await merchant.statuses()
    assert {event_id for event_id, status in statuses.items() if status == "pending"} == mine
    await theirs.set()
    await merchant.remove()
    statuses = await merchant.statuses()
    assert {event_id for event_id, status in statuses.items() if status == "pending"} == not_mine
    assert {event_id for event_id, status in statuses.items() if status == "waiting"} == mine


async def test_failure_at_a_replaced_address_is_not_counted(merchant: WebhookMerchant) -> None:
    await merchant.set()
    event_id = await merchant.publish()
    (row,) = await merchant.db.fetch("SELECT delivery_id, endpoint_id FROM delivery")
    old = await merchant.db.fetchval("SELECT address_id FROM webhook_endpoint")
    await merchant.set(path="/second")
    now = merchant.gateway.clock.now()
    # The late write of the worker that was sending to the old address.
    for due in (None, now + timedelta(hours=14)):
        await merchant.db.execute(tables.FAILED, row["delivery_id"], now, 410, "gone", due, row["endpoint_id"], old)
        await merchant.db.execute(endpoint_tables.RECORD_FAILURE, old, now, 1, now + timedelta(hours=1))
        noted = await merchant.db.fetchrow("SELECT status, attempts, due_at FROM delivery")
        assert noted is not None
        assert tuple(noted) == ("pending", 0, now)
    assert await merchant.db.fetchval("SELECT failures = 0 AND closed_until IS NULL FROM webhook_endpoint")
    await merchant.send()
    assert merchant.received_ids() == [event_id]
    assert {one.path for one in merchant.receiver.received} == {"/webhooks/second"}


async def test_delivery_claimed_during_removal_of_its_endpoint_waits(merchant: WebhookMerchant) -> None:
    await merchant.set()
    event_id = await merchant.publish()
    await merchant.db.execute("UPDATE webhook_endpoint SET is_active = false")
    await merchant.send()
    assert await merchant.statuses() == {event_id: "waiting"}
    assert merchant.receiver.received == []


async def test_log_has_the_deliveries_of_its_env_only(merchant: WebhookMerchant) -> None:
    here, there = await merchant.publish("sandbox"), await merchant.publish("live")
    for env, event_id in zip(ENVS, (here, there), strict=True):
        page = await merchant.deliveries.page(merchant.merchant_id, env, DeliveryQuery(count=True))
        assert [(row.event_id, row.env, row.status) for row in page.data] == [(event_id, env, "waiting")]
        assert page.meta.total == 1
    with pytest.raises(NotFound):
        await merchant.deliveries.get(merchant.merchant_id, "sandbox", await merchant.delivery_of(there))
    with pytest.raises(NotFound):
        await merchant.deliveries.event(merchant.merchant_id, "sandbox", there)
