"""Protects merchants from each other: an endpoint that hangs or has many deliveries delays no other."""

import asyncio
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.ids import renamed
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoint_limits import ROOM, EndpointLimits
from mpesa_gateway_webhooks.jobs import deliver
from tests.identifiers import identifiers

# $1 merchant, $2 events, $3 deliveries, $4 payments, $5 seconds since they fell due.
INSERT = """
WITH owed AS (
    SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) WITH ORDINALITY AS t(event_id, delivery_id, payment_id, n)
), event AS (
    INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, stored_body)
    SELECT event_id, 'payment.completed', $1, 'sandbox', payment_id, now(), true, '{}', '{"n": ' || n || '}' FROM owed
    RETURNING event_id, merchant_id, subject_id
)
INSERT INTO delivery (delivery_id, event_id, endpoint_id, merchant_id, env, event_type, payment_id, due_at, created_at)
SELECT delivery_id, event_id, endpoint_id, merchant_id, env, 'payment.completed', subject_id,
    now() - $5::float * interval '1 second', now()
FROM event JOIN owed USING (event_id) JOIN webhook_endpoint USING (merchant_id)
RETURNING delivery_id
"""

NOT_DELIVERED = "SELECT count(*) FROM delivery WHERE delivery_id = ANY($1::uuid[]) AND status <> 'delivered'"


async def insert_deliveries(gateway: Gateway, api: Api, count: int, letter: str, *, ago: float = 1.0) -> list[str]:
    """Insert deliveries that fell due `ago` seconds ago and woke no worker."""
    merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
    numbers = range(ord(letter) * 1000, ord(letter) * 1000 + count)
    ids = [identifiers(prefix, numbers) for prefix in ("evt", "dlv", "pay")]
    return [row["delivery_id"] for row in await gateway.db.fetch(INSERT, merchant_id, *ids, ago)]


async def all_delivered(gateway: Gateway, ids: list[str]) -> bool:
    """True if each of these is delivered."""
    return bool(await gateway.db.fetchval(NOT_DELIVERED, ids) == 0)


async def test_hanging_endpoint_delays_no_other_and_gets_everything_later(values: dict[str, Any]) -> None:
    # The hanging endpoint may use every slot.
    values["webhooks"] = {"max_concurrent": 2, "max_concurrent_per_endpoint": 2}
    values["worker"] = {"in_process": False, "grace": 0}
    async with receiving() as hanging, receiving() as well:
        hanging.delay = 3600
        async with (
            running_gateway(values) as (gateway, base),
            shop(gateway, base, webhook_url=hanging.url) as one,
            shop(gateway, base, webhook_url=well.url) as other,
        ):
            first = await insert_deliveries(gateway, one, 10, "a")
            second = await insert_deliveries(gateway, other, 10, "b")
            # The job ends although none of its calls does.
            await deliver(gateway, delivery_ids=first)
            await deliver(gateway, delivery_ids=second)
            await eventually(lambda: all_delivered(gateway, second))
            assert len(well.received) == 10
            begun = [received.headers["webhook-id"] for received in hanging.received]
            assert len(begun) == 2
            assert await gateway.db.fetchval(NOT_DELIVERED + " AND attempts = 0", first) == 10
        hanging.delay = 0
        async with running_gateway(values) as (gateway, _):
            # The first gateway has stopped and released its deliveries, sent or not.
            assert await gateway.db.fetchval("SELECT count(*) FROM delivery WHERE leased_until IS NOT NULL") == 0
            await deliver(gateway, delivery_ids=first)
            await eventually(lambda: all_delivered(gateway, first))
        sent = [received.headers["webhook-id"] for received in hanging.received]
        assert sorted(sent) == sorted([*begun, *(renamed(delivery_id, "evt") for delivery_id in first)])


async def test_claims_of_many_jobs_share_round_trips(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False, "grace": 0}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.delay = 3600
        ids = await insert_deliveries(gateway, api, 40, "a")
        # One delivery per job, as at low load.
        await asyncio.gather(*(deliver(gateway, delivery_ids=[delivery_id]) for delivery_id in ids))
        (leases,) = await gateway.db.fetch(
            "SELECT count(*) AS claimed, count(DISTINCT leased_until) AS trips FROM delivery WHERE tried = 1"
        )
        assert leases["claimed"] == 40
        # Two claims run alone; the other 38 deliveries are claimed 20 at a time.
        assert leases["trips"] <= 4


async def test_sweep_takes_deliveries_of_each_merchant(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as large,
        shop(gateway, base, webhook_url=receiver.url) as small,
    ):
        long_due = await insert_deliveries(gateway, large, 500, "a", ago=3600)
        just_due = await insert_deliveries(gateway, small, 3, "b", ago=1)
        swept = [row["delivery_id"] for row in await gateway.db.fetch(tables.DUE, gateway.clock.now(), 20, 10)]
        assert set(just_due) <= set(swept[:6])
        assert len(set(swept) & set(long_due)) == 10
        # A merchant without rivals gets the whole limit.
        await gateway.services.get(DeliveryService).deliver(just_due)
        swept = [row["delivery_id"] for row in await gateway.db.fetch(tables.DUE, gateway.clock.now(), 20, 100)]
        assert len(set(swept) & set(long_due)) == 20


async def test_unclaimed_deliveries_follow_without_a_sweep(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        ids = await insert_deliveries(gateway, api, 8 * ROOM, "a")
        # All jobs run at once; deliveries beyond the room are not claimed yet.
        await asyncio.gather(
            *(deliver(gateway, delivery_ids=ids[start : start + ROOM]) for start in range(0, len(ids), ROOM))
        )
        await eventually(lambda: all_delivered(gateway, ids), patience=60)
        sent = [received.headers["webhook-id"] for received in receiver.received]
        assert len(sent) == len(set(sent)) == len(ids)


async def test_begin_without_room_claims_nothing_until_there_is_room(values: dict[str, Any]) -> None:
    values["webhooks"] = {"max_concurrent": 1, "max_concurrent_per_endpoint": 1}
    # No sweep runs: the process that had no room claims the rest later.
    values["worker"] = {"in_process": True, "grace": 0, "queues": ["deliveries"]}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.delay = 0.3
        first, second = await insert_deliveries(gateway, api, 40, "a"), await insert_deliveries(gateway, api, 5, "b")
        service = gateway.services.get(DeliveryService)
        assert await service.begin(first) == 40
        assert await service.begin(second) == 0
        assert await gateway.db.fetchval(f"{NOT_DELIVERED} AND leased_until IS NULL AND tried = 0", second) == 5
        receiver.delay = 0
        await eventually(lambda: all_delivered(gateway, [*first, *second]), patience=60)


async def test_begin_returns_while_the_endpoint_hangs(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False, "grace": 0}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.delay = 3600
        ids = await insert_deliveries(gateway, api, 3, "a")
        assert await gateway.services.get(DeliveryService).begin(ids) == 3
        assert not await all_delivered(gateway, ids)


async def test_webhook_tests_of_a_hanging_endpoint_are_limited_per_merchant(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False, "grace": 0}
    async with (
        receiving() as hanging,
        receiving() as well,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=hanging.url) as one,
        shop(gateway, base, webhook_url=well.url) as other,
    ):
        hanging.delay = 3600
        waiting = [asyncio.create_task(one.call("POST", "/v1/merchant/webhook/test")) for _ in range(2)]
        await hanging.wait_for(2)
        refused = await one.call("POST", "/v1/merchant/webhook/test")
        assert (refused.status, refused.error["code"]) == (429, "RATE_LIMITED")
        assert (await other.call("POST", "/v1/merchant/webhook/test")).data["delivered"]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_slot_of_a_slow_call_is_released_to_others() -> None:
    lanes = EndpointLimits(at_once=1, per_endpoint=1, quick=0.05)
    order: list[str] = []
    released = asyncio.Event()

    async def call(name: str, *, is_slow: bool) -> None:
        lane = lanes.enter(name, 0)
        async with lanes.slot(lane):
            order.append(name)
            if is_slow:
                await released.wait()
            order.append(name + " ended")
        lanes.leave(name, lane)

    slow = asyncio.create_task(call("slow", is_slow=True))
    await asyncio.gather(call("quick", is_slow=False), call("last", is_slow=False))
    released.set()
    await slow
    assert order == ["slow", "quick", "quick ended", "last", "last ended", "slow ended"]


async def test_room_is_limited_and_stuck_lanes_use_none() -> None:
    lanes = EndpointLimits(at_once=1, per_endpoint=1, quick=0.05)
    entered = [lanes.enter("busy", 0) for _ in range(20)]
    waiting = asyncio.create_task(lanes.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    async with lanes.slot(entered[0]):
        # The call is slow, so its waiting deliveries use no room.
        await waiting
    for lane in entered:
        lanes.leave("busy", lane)
    assert lanes.full() == []
