"""Merchants side by side: one whose server hangs, or who is owed very much, keeps no other waiting."""

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

# $1 merchant, $2 events, $3 deliveries, $4 payments, $5 how many seconds ago they fell due.
OWE = """
WITH owed AS (
    SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) WITH ORDINALITY AS t(event_id, delivery_id, payment_id, n)
), event AS (
    INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body)
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


async def owe(gateway: Gateway, api: Api, count: int, letter: str, *, ago: float = 1.0) -> list[str]:
    """Deliveries to the shop that fell due so many seconds ago, and that nobody was woken for."""
    merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
    numbers = range(ord(letter) * 1000, ord(letter) * 1000 + count)
    ids = [identifiers(prefix, numbers) for prefix in ("evt", "dlv", "pay")]
    return [row["delivery_id"] for row in await gateway.db.fetch(OWE, merchant_id, *ids, ago)]


async def all_delivered(gateway: Gateway, ids: list[str]) -> bool:
    """Whether each of these has been taken."""
    return bool(await gateway.db.fetchval(NOT_DELIVERED, ids) == 0)


async def test_a_server_that_hangs_holds_up_nobody_else_and_gets_all_of_it_later(values: dict[str, Any]) -> None:
    # It may take every slot that there is.
    values["webhooks"] = {"max_concurrent": 2, "max_concurrent_per_endpoint": 2}
    values["worker"] = {"in_process": False, "grace": 0}
    async with receiving() as hanging, receiving() as well:
        hanging.delay = 3600
        async with (
            running_gateway(values) as (gateway, base),
            shop(gateway, base, webhook_url=hanging.url) as one,
            shop(gateway, base, webhook_url=well.url) as other,
        ):
            first = await owe(gateway, one, 10, "a")
            second = await owe(gateway, other, 10, "b")
            # The job ends, though none of the calls that it has made does.
            await deliver(gateway, delivery_ids=first)
            await deliver(gateway, delivery_ids=second)
            await eventually(lambda: all_delivered(gateway, second))
            assert len(well.received) == 10
            begun = [received.headers["webhook-id"] for received in hanging.received]
            assert len(begun) == 2
            assert await gateway.db.fetchval(NOT_DELIVERED + " AND attempts = 0", first) == 10
        hanging.delay = 0
        async with running_gateway(values) as (gateway, _):
            # Those before have stopped, and have handed back what they had begun and what they had not.
            assert await gateway.db.fetchval("SELECT count(*) FROM delivery WHERE leased_until IS NOT NULL") == 0
            await deliver(gateway, delivery_ids=first)
            await eventually(lambda: all_delivered(gateway, first))
        sent = [received.headers["webhook-id"] for received in hanging.received]
        assert sorted(sent) == sorted([*begun, *(renamed(delivery_id, "evt") for delivery_id in first)])


async def test_many_jobs_claim_in_few_round_trips(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False, "grace": 0}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.delay = 3600
        ids = await owe(gateway, api, 40, "a")
        # One each, as they are woken when little happens.
        await asyncio.gather(*(deliver(gateway, delivery_ids=[delivery_id]) for delivery_id in ids))
        (leases,) = await gateway.db.fetch(
            "SELECT count(*) AS claimed, count(DISTINCT leased_until) AS trips FROM delivery WHERE tried = 1"
        )
        assert leases["claimed"] == 40
        # Two go first, alone; the other 38 are claimed 20 at a time.
        assert leases["trips"] <= 4


async def test_the_sweep_hands_over_something_of_everybodys(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as large,
        shop(gateway, base, webhook_url=receiver.url) as small,
    ):
        long_due = await owe(gateway, large, 500, "a", ago=3600)
        just_due = await owe(gateway, small, 3, "b", ago=1)
        swept = [row["delivery_id"] for row in await gateway.db.fetch(tables.DUE, gateway.clock.now(), 20, 10)]
        assert set(just_due) <= set(swept[:6])
        assert len(set(swept) & set(long_due)) == 10
        # Whoever is owed nothing else gets all that there is room for.
        await gateway.services.get(DeliveryService).deliver(just_due)
        swept = [row["delivery_id"] for row in await gateway.db.fetch(tables.DUE, gateway.clock.now(), 20, 100)]
        assert len(set(swept) & set(long_due)) == 20


async def test_what_was_left_in_postgres_follows_without_a_sweep(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        ids = await owe(gateway, api, 8 * ROOM, "a")
        # Awakened all at once; more than has room is not claimed then.
        await asyncio.gather(
            *(deliver(gateway, delivery_ids=ids[start : start + ROOM]) for start in range(0, len(ids), ROOM))
        )
        await eventually(lambda: all_delivered(gateway, ids), patience=60)
        sent = [received.headers["webhook-id"] for received in receiver.received]
        assert len(sent) == len(set(sent)) == len(ids)


async def test_begin_without_room_claims_nothing_and_hands_over_once_there_is_room(values: dict[str, Any]) -> None:
    values["webhooks"] = {"max_concurrent": 1, "max_concurrent_per_endpoint": 1}
    # No sweep runs: what was left is handed over by the process that had no room.
    values["worker"] = {"in_process": True, "grace": 0, "queues": ["deliveries"]}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.delay = 0.3
        first, second = await owe(gateway, api, 40, "a"), await owe(gateway, api, 5, "b")
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
        ids = await owe(gateway, api, 3, "a")
        assert await gateway.services.get(DeliveryService).begin(ids) == 3
        assert not await all_delivered(gateway, ids)


async def test_tests_of_a_hanging_webhook_are_bounded_for_each_merchant(values: dict[str, Any]) -> None:
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


async def test_a_slow_call_gives_its_slot_to_others() -> None:
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


async def test_nobody_claims_more_than_there_is_room_for_but_lanes_that_are_stuck_take_no_room() -> None:
    lanes = EndpointLimits(at_once=1, per_endpoint=1, quick=0.05)
    entered = [lanes.enter("busy", 0) for _ in range(20)]
    waiting = asyncio.create_task(lanes.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    async with lanes.slot(entered[0]):
        # The call is slow; what waits for it is nobody else's hindrance.
        await waiting
    for lane in entered:
        lanes.leave("busy", lane)
    assert lanes.full() == []
