"""Protects the doctor's checks of Valkey and of the workers: each in its right and wrong state."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import valkey.asyncio

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.doctor.valkey import check_valkey, memory_result, persistence_result, version_result
from mpesa_gateway.doctor.workers import check_workers
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import eventually, running_gateway
from tests.looking import ShiftedClock, levels, results_of_check


@pytest.fixture
def gateway(values: dict[str, Any]) -> Gateway:
    """Return a gateway that has not been started."""
    return Gateway(GatewayConfig.from_values(values))


@asynccontextmanager
async def changed(url: str, name: str, value: str) -> AsyncGenerator[None]:
    """Change a setting of the whole server for the length of the block."""
    client: Any = valkey.asyncio.from_url(url)  # type: ignore[no-untyped-call]
    before = (await client.config_get(name))[name]
    await client.config_set(name, value)
    try:
        yield
    finally:
        await client.config_set(name, before)
        await client.aclose()


async def test_look_at_valkey_in_order_reports_ok(gateway: Gateway) -> None:
    assert levels(await results_of_check(check_valkey, gateway)) == {
        f"valkey.{name}": "ok" for name in ("reachable", "eviction", "persistence")
    }


async def test_look_at_valkey_with_unreachable_sentinels_names_them(values: dict[str, Any]) -> None:
    sentinels = {"url": "valkey://:opens-nothing@10.0.0.5:6379/0", "sentinels": ["127.0.0.1:9", "127.0.0.1:10"]}
    gateway = Gateway(GatewayConfig.from_values(values | {"valkey": sentinels | {"service": "till"}}))
    (found,) = (await results_of_check(check_valkey, gateway)).values()
    assert (found.name, found.level.value) == ("valkey.reachable", "problem")
    assert "what 127.0.0.1:9, 127.0.0.1:10 call till" in found.text
    assert "opens-nothing" not in found.text


@pytest.mark.parametrize(
    ("url", "words"), [("valkey://:wrong@{}", "refuses us"), ("valkey://:secret@127.0.0.1:9/0", "cannot be reached")]
)
async def test_look_at_valkey_without_access_reports_a_problem_without_the_password(
    gateway: Gateway, url: str, words: str
) -> None:
    ours = gateway.config.valkey.url
    assert ours is not None
    at = ours.reveal().rpartition("@")[2]
    config = msgspec.structs.replace(gateway.config.valkey, url=Secret(url.format(at)))
    found = await results_of_check(check_valkey, Gateway(msgspec.structs.replace(gateway.config, valkey=config)))
    assert levels(found) == {"valkey.reachable": "problem"}
    assert words in found["valkey.reachable"].text
    assert "secret" not in str(found)
    assert "wrong" not in str(found)


async def test_look_at_valkey_with_eviction_of_jobs_warns(gateway: Gateway, valkey_url: str) -> None:
    async with changed(valkey_url, "maxmemory-policy", "allkeys-lru"):
        found = (await results_of_check(check_valkey, gateway))["valkey.eviction"]
    assert (found.level, "allkeys-lru" in found.text, "noeviction" in (found.fix or "")) == ("warning", True, True)


async def test_look_at_valkey_without_persistence_is_a_note(gateway: Gateway, valkey_url: str) -> None:
    async with changed(valkey_url, "appendonly", "no"):
        found = (await results_of_check(check_valkey, gateway))["valkey.persistence"]
    assert (found.level, found.fix) == ("note", "set appendonly yes")


def test_see_persistence_that_cannot_write_is_a_problem() -> None:
    (found,) = persistence_result({"aof_enabled": 1, "aof_last_write_status": "err"})
    assert (found.level, "AOF" in found.text) == ("problem", True)


def test_see_memory_nearly_full_warns() -> None:
    info = {"maxmemory_policy": "noeviction", "maxmemory": 1000, "used_memory": 950}
    assert (memory_result(info).level, "95 %" in memory_result(info).text) == ("warning", True)


def test_see_version_too_old_for_the_queue_is_a_problem() -> None:
    assert [found.level for found in version_result("Redis", "6.0.16")] == ["problem"]
    assert version_result("Redis", "6.2.7") == version_result("Valkey", "9.1.0") == []


async def test_look_at_workers_without_a_worker_is_a_problem(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await gateway.jobs.enqueue("payments.query", payment_id="pay_1")
        found = await results_of_check(check_workers, gateway)
        assert levels(found) == {"workers.alive": "problem"}
        assert "1 jobs wait" in found["workers.alive"].text


async def is_healthy(gateway: Gateway) -> bool:
    """Return True once a worker has sent a heartbeat and run its cron jobs."""
    found = await results_of_check(check_workers, gateway)
    return levels(found) == {"workers.alive": "ok", "workers.crons": "ok"}


async def test_look_at_workers_with_a_worker_reports_ok(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        await eventually(lambda: is_healthy(gateway))


async def test_look_at_workers_names_a_queue_without_a_worker(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": True, "queues": ["deliveries", "maintenance", "default"]}
    async with running_gateway(values) as (gateway, _):

        async def two_more() -> bool:
            counts = [await queue.count_workers() for queue in gateway.jobs.queues.values()]
            return sum(counts) == 3

        await eventually(two_more)
        await gateway.jobs.enqueue("payments.query", shortcode_id="shc_1")
        found = (await results_of_check(check_workers, gateway))["workers.alive"]
    assert found.level == "problem"
    assert found.text == "no worker serves the queue `daraja`: 1 jobs wait there"
    assert "--queues daraja" in (found.fix or "")


async def test_look_at_workers_with_fewer_plugins_names_the_missing_crons(values: dict[str, Any]) -> None:
    less = values | {"plugins": ["credentials", "callbacks", "transactions", "payments"]}
    less.pop("simulator")
    async with running_gateway(less) as (gateway, _):
        await eventually(lambda: is_healthy(gateway))
        gateway.jobs_by_name = Gateway(GatewayConfig.from_values(values)).jobs_by_name
        found = (await results_of_check(check_workers, gateway))["workers.crons"]
    assert found.level == "problem"
    assert "refunds.sweep" in found.text
    assert "payments.sweep" not in found.text


async def test_look_at_workers_with_a_late_cron_is_a_problem(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        await eventually(lambda: is_healthy(gateway))
        found = (await results_of_check(check_workers, gateway, now=ShiftedClock(3600).now()))["workers.crons"]
    assert (found.level, "payments.sweep" in found.text) == ("problem", True)


async def test_look_at_workers_with_failed_jobs_is_a_note(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        await eventually(lambda: is_healthy(gateway))
        await gateway.jobs.enqueue("payments.query", nonsense="x")

        async def noted() -> bool:
            return "workers.failed" in await results_of_check(check_workers, gateway)

        await eventually(noted)
        assert (await results_of_check(check_workers, gateway))["workers.failed"].level == "note"
