"""Two gateways in one process, such as a sandbox beside the real thing: neither sees the other's money."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import WhichGateway
from mpesa_gateway.money import Kes
from mpesa_gateway.neighbours import KeyspaceTaken
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.tables import MerchantRow
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database, empty_keyspace
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_payments.api import PaymentRequest, Payments
from mpesa_gateway_payments.events import PaymentCompleted


@asynccontextmanager
async def both(
    values: dict[str, Any], changes: dict[str, Any]
) -> AsyncGenerator[tuple[tuple[Gateway, Api], tuple[Gateway, Api]]]:
    """Two gateways, each with a shop of its own."""
    async with (
        running_gateway(values) as (one, base),
        running_gateway(values | changes) as (two, other_base),
        shop(one, base) as api,
        shop(two, other_base) as other_api,
    ):
        yield (one, api), (two, other_api)


@pytest.fixture
def next_door(servers: Servers) -> Generator[dict[str, Any]]:
    """Settings of a gateway with a database and a Valkey keyspace of its own."""
    with empty_database(servers) as url:
        yield {"database": {"url": url, "pool_max": 10}, "valkey": {"url": empty_keyspace(servers)}}


@pytest.mark.parametrize("apart", ["databases", "schemas"])
async def test_each_takes_its_own_money_and_tells_its_own_subscribers(
    values: dict[str, Any], next_door: dict[str, Any], apart: str
) -> None:
    changes: dict[str, Any] = {
        "databases": next_door,
        "schemas": {
            "database": values["database"] | {"schema": "second"},
            "valkey": values["valkey"] | {"prefix": "second"},
        },
    }[apart]
    async with both(values, changes) as ((one, api), (two, other_api)):
        heard: list[asyncio.Queue[PaymentCompleted]] = []
        for gateway in (one, two):
            heard.append(asyncio.Queue())
            gateway.on(PaymentCompleted)(heard[-1].put)
        made = [(await shop_api.pay("254711000001", key="the same key")).data for shop_api in (api, other_api)]
        paid = [
            await shop_api.settled(one_made["id"], "completed")
            for shop_api, one_made in zip((api, other_api), made, strict=True)
        ]
        assert [(await asyncio.wait_for(queue.get(), 15)).payment_id for queue in heard] == [
            one_paid["id"] for one_paid in paid
        ]
        assert all(queue.empty() for queue in heard)
        assert (await api.call("GET", f"/v1/payments/{paid[1]['id']}")).status == 404
        assert (await other_api.call("GET", "/v1/merchant/me")).data["id"] == paid[1]["merchant_id"]
        stranger = Api(other_api.base, api.key)
        assert (await stranger.call("GET", "/v1/merchant/me")).status == 401
        await stranger.close()
        for gateway, own in ((one, paid[0]), (two, paid[1])):
            assert await gateway.db.fetchval("SELECT array_agg(payment_id::text) FROM payment") == [own["id"]]
            assert [merchant.merchant_id for merchant in await gateway.merchants.page(10)] == [own["merchant_id"]]
            assert await gateway.merchants.get(own["merchant_id"]) is not None


async def test_called_from_the_others_transaction_each_stays_at_home(
    values: dict[str, Any], next_door: dict[str, Any]
) -> None:
    async with both(values, next_door) as ((one, _), (two, _)):
        (theirs,) = await two.merchants.page(1)
        async with one.db.transaction():
            assert await two.merchants.page(10) == [theirs]
            assert await one.merchants.get(theirs.merchant_id) is None
            wanted = PaymentRequest(amount=Kes(5), phone=Msisdn.parse("0711000071"))
            asked = await two.port(Payments).request(
                theirs.merchant_id, "sandbox", wanted, idempotency_key="from next door"
            )
        assert asked.payment.status == "pending"
        assert await one.db.fetchval("SELECT count(*) FROM payment") == 0


async def test_a_query_that_does_not_say_in_which_is_refused_and_not_guessed(
    values: dict[str, Any], next_door: dict[str, Any]
) -> None:
    async with both(values, next_door) as ((one, _), (two, _)):
        with pytest.raises(WhichGateway, match=r"`await gateway\.db\.run\(query\)`"):
            await MerchantRow.count()
        assert await one.db.run(MerchantRow.count()) == 1
        async with two.db.transaction():
            await MerchantRow.update({MerchantRow.name: "Renamed"}, force=True)
        assert [(await gateway.merchants.page(1))[0].name for gateway in (one, two)] == ["Test shop", "Renamed"]
        # Piccolo asks which kind of database it is while it builds this one, before ``run`` says which.
        again = MerchantRow.insert(MerchantRow(**(await two.db.run(MerchantRow.select().first()))))
        assert await two.db.run(again.on_conflict(action="DO NOTHING")) == []
    with pytest.raises(WhichGateway, match="the gateway has not been started"):
        await MerchantRow.count()


async def test_what_still_runs_while_one_is_stopped_writes_nothing_next_door(
    values: dict[str, Any], next_door: dict[str, Any]
) -> None:
    async with both(values, next_door) as ((one, _), (two, _)):
        (row,) = await two.db.run(MerchantRow.select())
        began, stopping = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            async with two.db.transaction():
                await two.db.execute("UPDATE merchant SET name = 'Seen'")
                began.set()
                await stopping.wait()
                await two.db.run(MerchantRow.insert(MerchantRow(**row | {"merchant_id": "mer_late", "name": "Late"})))
                update = cast(Any, MerchantRow.update)
                found = await two.db.run(update({MerchantRow.name: "Renamed"}, force=True).returning(MerchantRow.name))
                assert [each["name"] for each in found] == ["Renamed", "Renamed"]

        async def is_closing() -> bool:
            return cast("asyncpg.Pool[asyncpg.Record]", two.db.engine.pool).is_closing()

        working = asyncio.create_task(work())
        await began.wait()
        stop = asyncio.create_task(two.db.stop())
        await eventually(is_closing)
        stopping.set()
        await asyncio.gather(working, stop)
        assert [each["name"] for each in await one.db.run(MerchantRow.select())] == ["Test shop"]
        with pytest.raises(WhichGateway, match="its gateway has not been started, or has stopped"):
            await two.db.run(MerchantRow.count())
        await two.db.start()
        two.db.bind([MerchantRow])
        assert [each["name"] for each in await two.db.run(MerchantRow.select())] == ["Renamed", "Renamed"]


async def test_a_query_without_a_pool_opens_no_connection_of_its_own(values: dict[str, Any]) -> None:
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        pool, gateway.db.engine.pool = gateway.db.engine.pool, None
        try:
            with pytest.raises(RuntimeError):
                await gateway.db.run(MerchantRow.count())
            with pytest.raises(RuntimeError):
                await gateway.db.fetchval("SELECT count(*) FROM merchant")
        finally:
            gateway.db.engine.pool = pool
        assert await gateway.db.run(MerchantRow.count()) == 0


async def test_one_queue_for_two_databases_is_refused(values: dict[str, Any], next_door: dict[str, Any]) -> None:
    second = Gateway(GatewayConfig.from_values(values | {"database": next_door["database"]}))
    async with Gateway(GatewayConfig.from_values(values)).running() as first:
        with pytest.raises(KeyspaceTaken, match=r"set another `valkey\.prefix` for one of them"):
            await second.start()
        assert not second.is_running
        assert not second.db.is_running
        made = await first.merchants.create("Still served", actor="test")
        assert await first.merchants.get(made.merchant_id) == made
    async with second.running():
        assert await second.merchants.page(10) == []


async def test_two_on_the_same_database_are_replicas(values: dict[str, Any]) -> None:
    first, second = (Gateway(GatewayConfig.from_values(values)) for _ in range(2))
    async with first.running(), second.running():
        made = await first.merchants.create("Seen by both", actor="test")
        assert await second.merchants.get(made.merchant_id) == made
