"""What is owed is never lost between endpoints: it waits for the next endpoint of its merchant and env."""

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
from mpesa_gateway_webhooks.pages import unheard
from mpesa_gateway_webhooks.schemas import DeliveryQuery, ReplayMany


class Post:
    """One merchant's webhooks, in both envs, without a worker: each step is taken by the test."""

    def __init__(self, gateway: Gateway, merchant_id: str, receiver: Receiver) -> None:
        self.gateway = gateway
        self.db = gateway.db
        self.merchant_id = merchant_id
        self.receiver = receiver
        self.deliveries = gateway.services.get(DeliveryService)
        self.endpoints = gateway.services.get(EndpointService)

    def caller(self, env: Env = "sandbox") -> Caller:
        """A key of this env."""
        return Caller(self.merchant_id, "key_1", frozenset(), env)

    async def happens(self, env: Env = "sandbox") -> str:
        """Something that the merchant hears of; returns the id of the event."""
        async with self.db.transaction():
            event = WebhookTest(merchant_id=self.merchant_id, env=env, subject_id=self.merchant_id)
            return (await self.gateway.outbox.publish([event]))[0].event_id

    async def set(self, env: Env = "sandbox", path: str = "") -> None:
        """Set the endpoint, and do what the job does then."""
        url = f"{self.receiver.url}{path}" if env == "sandbox" else f"https://shop.example.co.ke/{path}"
        await self.endpoints.set_url(self.caller(env), url)
        await self.deliveries.assign_undelivered()

    async def remove(self, env: Env = "sandbox") -> None:
        """Remove the endpoint, and do what the job does then."""
        await self.endpoints.remove(self.caller(env))
        await self.deliveries.assign_undelivered()

    async def statuses(self) -> dict[str, str]:
        """The status of each delivery, by its event."""
        rows = await self.db.fetch("SELECT event_id, status FROM delivery")
        assert len({row["event_id"] for row in rows}) == len(rows)
        return {row["event_id"]: row["status"] for row in rows}

    async def send(self) -> None:
        """Send all that is due."""
        rows = await self.db.fetch("SELECT delivery_id FROM delivery WHERE status = 'pending'")
        await self.deliveries.deliver([row["delivery_id"] for row in rows])

    async def delivery_of(self, event_id: str) -> str:
        """The delivery of an event."""
        return str(await self.db.fetchval("SELECT delivery_id FROM delivery WHERE event_id = $1", event_id))

    def heard(self) -> list[str]:
        """The events that the server got, in the order of their times."""
        return sorted(one.headers["webhook-id"] for one in self.receiver.received)


@asynccontextmanager
async def posted(values: dict[str, Any], **options: Any) -> AsyncGenerator[Post]:
    """A gateway without a worker, a merchant and its server."""
    values["worker"] = {"in_process": False}
    async with receiving() as receiver, running_gateway(values, **options) as (gateway, _):
        merchant = await gateway.merchants.create("Shop", actor="test")
        yield Post(gateway, merchant.merchant_id, receiver)


@pytest.fixture
async def post(values: dict[str, Any]) -> AsyncGenerator[Post]:
    """The same by the clock on the wall."""
    async with posted(values) as made:
        yield made


async def test_events_wait_for_the_first_endpoint_of_their_env_and_are_sent_to_no_other(post: Post) -> None:
    here, there = await post.happens("sandbox"), await post.happens("live")
    assert await post.statuses() == {here: "waiting", there: "waiting"}
    await post.set("live")
    assert await post.statuses() == {here: "waiting", there: "pending"}
    await post.remove("live")
    await post.set("sandbox")
    assert await post.statuses() == {here: "pending", there: "waiting"}
    await post.send()
    assert post.heard() == [here]
    assert await post.statuses() == {here: "delivered", there: "waiting"}


async def test_what_is_owed_to_a_removed_endpoint_goes_to_the_next_one(post: Post) -> None:
    await post.set()
    post.receiver.status = 500
    failed = await post.happens()
    await post.send()
    fresh = await post.happens()
    await post.remove()
    meanwhile = await post.happens()
    assert set((await post.statuses()).values()) == {"waiting"}
    post.receiver.status = 200
    post.receiver.received.clear()
    await post.set(path="/second")
    await post.send()
    assert post.heard() == sorted([failed, fresh, meanwhile])
    assert await post.statuses() == dict.fromkeys((failed, fresh, meanwhile), "delivered")
    assert await post.db.fetchval("SELECT count(DISTINCT endpoint_id) FROM delivery") == 1
    # What was delivered before is not sent again.
    await post.remove()
    await post.set(path="/third")
    await post.send()
    assert len(post.receiver.received) == 3


async def test_replay_goes_to_the_endpoint_that_is_set_now(post: Post) -> None:
    await post.set()
    taken = await post.happens()
    await post.send()
    await post.remove()
    everything = ReplayMany(since=post.gateway.clock.now() - timedelta(hours=1))
    with pytest.raises(Conflict, match="no sandbox webhook is set"):
        await post.deliveries.replay_many(post.caller(), everything)
    with pytest.raises(Conflict, match="no sandbox webhook is set"):
        await post.deliveries.replay(post.caller(), await post.delivery_of(taken))
    waits = await post.happens()
    await post.endpoints.set_url(post.caller(), f"{post.receiver.url}/second")
    # Before the job has run, a replay finds what waits as well.
    assert (await post.deliveries.replay_many(post.caller(), everything)).replayed == 2
    post.receiver.received.clear()
    await post.send()
    assert post.heard() == sorted([taken, waits])
    assert {one.path for one in post.receiver.received} == {"/webhooks/second"}


async def test_each_env_has_an_endpoint_and_a_secret_of_its_own(post: Post) -> None:
    made = {env: await post.endpoints.set_url(post.caller(env), f"https://{env}.example.co.ke/x") for env in ENVS}
    assert made["sandbox"].webhook_secret != made["live"].webhook_secret
    rotated = await post.endpoints.rotate(post.caller("sandbox"))
    assert (rotated.env, rotated.webhook_url) == ("sandbox", "https://sandbox.example.co.ke/x")
    live = await post.endpoints.view(post.merchant_id, "live")
    assert (live.webhook_url, live.webhook_secret) == (
        "https://live.example.co.ke/x",
        f"****{made['live'].webhook_secret[-4:]}",
    )
    assert live.previous_secret_until is None
    await post.endpoints.set_url(post.caller("sandbox"), "https://elsewhere.example.co.ke/x")
    await post.endpoints.remove(post.caller("sandbox"))
    assert await post.endpoints.view(post.merchant_id, "live") == live
    with pytest.raises(NotFound, match="no sandbox webhook is set"):
        await post.endpoints.view(post.merchant_id, "sandbox")
    with pytest.raises(NotFound):
        await post.endpoints.rotate(post.caller("sandbox"))


async def test_what_has_waited_too_long_is_dead_and_can_be_replayed(
    values: dict[str, Any], frozen_clock: SetClock
) -> None:
    values["webhooks"] = {"wait_days": 30}
    async with posted(values, clock=frozen_clock) as post:
        old = await post.happens()
        frozen_clock.advance(timedelta(days=30, seconds=1))
        young = await post.happens()
        frozen_clock.advance(timedelta(days=30))
        assert [concern.to for concern in await unheard(post.gateway, "sandbox")] == [
            "webhooks/deliveries?status=waiting"
        ]
        await post.set()
        assert await post.statuses() == {old: "dead", young: "pending"}
        await post.deliveries.replay(post.caller(), await post.delivery_of(old))
        await post.send()
        assert post.heard() == sorted([old, young])


async def test_operators_hear_of_merchants_whose_events_wait(post: Post) -> None:
    desk = post.gateway.services.get(WebhookOperatorService)
    assert [await desk.waiting(env) for env in ENVS] == [(0, None), (0, None)]
    await post.happens("live")
    await post.happens("live")
    assert (await desk.waiting("sandbox"), (await desk.waiting("live"))[0]) == ((0, None), 1)
    assert [concern.text for concern in await unheard(post.gateway, "live")] == [
        "1 merchant with events and no live webhook endpoint"
    ]
    await post.set("live")
    assert await desk.waiting("live") == (0, None)


async def test_many_are_handed_over_in_batches_and_to_each_its_own(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpesa_gateway_webhooks.deliveries.SWEEP", 3)
    other = await post.gateway.merchants.create("Other", actor="test")
    theirs = Post(post.gateway, other.merchant_id, post.receiver)
    mine = {await post.happens() for _ in range(8)}
    not_mine = {await theirs.happens() for _ in range(7)}
    await post.set()
    statuses = await post.statuses()
    assert {event_id for event_id, status in statuses.items() if status == "pending"} == mine
    await theirs.set()
    await post.remove()
    statuses = await post.statuses()
    assert {event_id for event_id, status in statuses.items() if status == "pending"} == not_mine
    assert {event_id for event_id, status in statuses.items() if status == "waiting"} == mine


async def test_a_failure_at_an_address_that_was_replaced_meanwhile_counts_for_nothing(post: Post) -> None:
    await post.set()
    event_id = await post.happens()
    (row,) = await post.db.fetch("SELECT delivery_id, endpoint_id FROM delivery")
    old = await post.db.fetchval("SELECT address_id FROM webhook_endpoint")
    await post.set(path="/second")
    now = post.gateway.clock.now()
    # As the worker that had been sending to the old address notes that it is gone.
    for due in (None, now + timedelta(hours=14)):
        await post.db.execute(tables.FAILED, row["delivery_id"], now, 410, "gone", due, row["endpoint_id"], old)
        await post.db.execute(endpoint_tables.ENDPOINT_ILL, old, now, 1, now + timedelta(hours=1))
        noted = await post.db.fetchrow("SELECT status, attempts, due_at FROM delivery")
        assert noted is not None
        assert tuple(noted) == ("pending", 0, now)
    assert await post.db.fetchval("SELECT failures = 0 AND closed_until IS NULL FROM webhook_endpoint")
    await post.send()
    assert post.heard() == [event_id]
    assert {one.path for one in post.receiver.received} == {"/webhooks/second"}


async def test_one_that_was_claimed_as_its_endpoint_was_removed_waits(post: Post) -> None:
    await post.set()
    event_id = await post.happens()
    await post.db.execute("UPDATE webhook_endpoint SET is_active = false")
    await post.send()
    assert await post.statuses() == {event_id: "waiting"}
    assert post.receiver.received == []


async def test_the_log_shows_only_the_deliveries_of_its_env(post: Post) -> None:
    here, there = await post.happens("sandbox"), await post.happens("live")
    for env, event_id in zip(ENVS, (here, there), strict=True):
        page = await post.deliveries.page(post.merchant_id, env, DeliveryQuery(count=True))
        assert [(row.event_id, row.env, row.status) for row in page.data] == [(event_id, env, "waiting")]
        assert page.meta.total == 1
    with pytest.raises(NotFound):
        await post.deliveries.get(post.merchant_id, "sandbox", await post.delivery_of(there))
    with pytest.raises(NotFound):
        await post.deliveries.event(post.merchant_id, "sandbox", there)
