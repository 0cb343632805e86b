"""Protects the stop of a worker: at once when idle, and without losing a job that arrives during it."""

import asyncio
import time
from typing import Any

import pytest
import valkey.asyncio

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.plugin import Job, Plugin
from mpesa_gateway.queues import GatewayQueue
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway.worker import GatewayWorker

done: list[str] = []


async def note(gateway: Gateway, *, number: str) -> None:
    """Record the job."""
    assert gateway.is_running
    done.append(number)


PLUGIN = Plugin(name="noting", summary="Notes its jobs.", jobs=(Job(note, timeout=10),))


def made(values: dict[str, Any], **changes: Any) -> Gateway:
    """Return a gateway with one job, whose workers the test runs."""
    bare: dict[str, Any] = {"plugins": [], "worker": {"in_process": False}}
    kept = {name: values[name] for name in ("database", "valkey", "security")}
    return Gateway(GatewayConfig.from_values(kept | bare | changes), plugins=(PLUGIN,))


async def working(gateway: Gateway) -> tuple[GatewayWorker, "asyncio.Task[None]"]:
    """Start a worker and wait until all of its slots wait in Valkey."""
    (worker,) = gateway.worker(["default"]).workers.values()
    await worker.queue.connect()
    task = asyncio.create_task(worker.start())

    async def is_idle() -> bool:
        clients = await gateway.valkey.client_list()
        return len([client for client in clients if client["cmd"] == "blmove"]) >= worker.concurrency

    await eventually(is_idle)
    return worker, task


async def seconds_to_stop(worker: GatewayWorker, task: "asyncio.Task[None]") -> float:
    """Return the seconds until a worker has ended."""
    began = time.monotonic()
    worker.event.set()
    await task
    await worker.queue.disconnect()
    return time.monotonic() - began


async def test_worker_stop_when_idle_does_not_wait_for_a_job(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than any machine takes for the rest: a slot that waited for it would fail the test.
    monkeypatch.setattr("mpesa_gateway.queues.DEQUEUE", 60.0)
    async with made(values, worker={"in_process": False, "grace": 120}).running() as gateway:
        assert await seconds_to_stop(*await working(gateway)) < 30


async def test_worker_stop_without_valkey_permissions_ends(values: dict[str, Any]) -> None:
    client: Any = valkey.asyncio.from_url(values["valkey"]["url"])  # type: ignore[no-untyped-call]
    await client.acl_setuser(
        "narrow",
        enabled=True,
        passwords=["+narrow"],
        keys=["*"],
        channels=["*"],
        commands=["+@all", "-client|unblock", "-client|id"],
    )
    url = values["valkey"]["url"]
    try:
        narrow = "valkey://narrow:narrow@" + url.rpartition("@")[2]
        async with made(values, valkey={"url": narrow}).running() as gateway:
            assert await seconds_to_stop(*await working(gateway)) < 5
    finally:
        await client.acl_deluser("narrow")
        await client.aclose()


async def test_worker_stop_with_arriving_jobs_loses_none(values: dict[str, Any]) -> None:
    done.clear()
    async with made(values).running() as gateway:
        sent = 0
        for _ in range(5):
            worker, task = await working(gateway)
            stopping = asyncio.create_task(seconds_to_stop(worker, task))
            for _ in range(40):
                assert await gateway.jobs.enqueue("noting.note", number=str(sent))
                sent += 1
            await stopping
        queue: GatewayQueue = gateway.jobs.queues["default"]
        # No job is claimed by the ended worker.
        assert await queue.count("active") == 0
        worker, task = await working(gateway)

        async def are_all_done() -> bool:
            return len(done) == sent

        await eventually(are_all_done)
        await seconds_to_stop(worker, task)
        assert sorted(done, key=int) == [str(number) for number in range(sent)]
