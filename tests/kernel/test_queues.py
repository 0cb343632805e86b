"""Protects the queues: a delayed job is retried once, and an aborted job ends."""

import asyncio
from typing import Any

import pytest
from saq import Status

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.plugin import Job, Plugin
from mpesa_gateway.queues import GatewayQueue
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway.worker import build_worker

runs: list[str] = []


async def fail_first(_: Gateway, *, number: str) -> None:
    runs.append(number)
    if runs.count(number) == 1:
        raise LookupError("a test")


async def wait(_: Gateway, *, number: str) -> None:
    runs.append(number)
    await asyncio.Event().wait()


PLUGIN = Plugin(
    name="trying", summary="Fails.", jobs=(Job(fail_first, timeout=10, attempts=2), Job(wait, timeout=90, attempts=2))
)


@pytest.fixture
def gateway(values: dict[str, Any]) -> Gateway:
    runs.clear()
    bare: dict[str, Any] = {"plugins": [], "worker": {"in_process": False}}
    kept = {name: values[name] for name in ("database", "valkey", "security")}
    return Gateway(GatewayConfig.from_values(kept | bare), plugins=(PLUGIN,))


async def key_of(queue: GatewayQueue) -> str:
    (job,) = (await queue.info(jobs=True))["jobs"]
    key: str = job["key"]
    return key


@pytest.mark.parametrize("delay", [0, 1])
async def test_retry_of_a_job_runs_it_once_more(gateway: Gateway, delay: float) -> None:
    async with gateway.running():
        queue = gateway.jobs.queues["default"]
        worker = build_worker(gateway, "default")
        await worker.queue.connect()
        working = asyncio.create_task(worker.start())
        assert await gateway.jobs.enqueue("trying.fail_first", delay=delay, number="1")

        async def is_done() -> bool:
            left = [await queue.count(kind) for kind in ("queued", "active", "incomplete")]
            return len(runs) >= 2 and left == [0, 0, 0]

        await eventually(is_done)
        assert runs == ["1", "1"]
        worker.event.set()
        await working
        await worker.queue.disconnect()


async def test_retry_of_a_failed_delayed_job_queues_it_once(gateway: Gateway) -> None:
    async with gateway.running():
        queue = gateway.jobs.queues["default"]
        assert await gateway.jobs.enqueue("trying.fail_first", delay=1, number="1")
        key = await key_of(queue)
        assert await eventually(lambda: queue.schedule(lock=1)) == [queue.job_id(key)]
        job = await queue.dequeue(1)
        assert job is not None
        await queue.finish(job, Status.FAILED, error="a test")
        assert await queue.retry_failed(key) is not None

        async def is_schedule_free() -> bool:
            return not await gateway.valkey.exists(queue.namespace("schedule"))

        await eventually(is_schedule_free)
        assert await queue.schedule(lock=1) == []
        assert await queue.count("queued") == await queue.count("incomplete") == 1


async def test_abort_of_a_scheduled_job_ends_it(gateway: Gateway) -> None:
    async with gateway.running():
        queue = gateway.jobs.queues["default"]
        assert await gateway.jobs.enqueue("trying.wait", once="a", delay=3600, number="1")
        job = await queue.job(await key_of(queue))
        assert job is not None
        await queue.abort(job, "aborted from ui")
        ended = await queue.job(job.key)
        assert ended is not None
        assert (ended.status, ended.error) == (Status.ABORTED, "aborted from ui")
        assert await gateway.valkey.ttl(job.id) > 0
        assert [each.key for each in await queue.failed_jobs(0, 10)] == [job.key]
        # Its key is free at once.
        assert await gateway.jobs.enqueue("trying.wait", once="a", delay=3600, number="2")
        assert await queue.count("incomplete") == 1


async def test_abort_of_a_queued_job_ends_it(gateway: Gateway) -> None:
    async with gateway.running():
        queue = gateway.jobs.queues["default"]
        assert await gateway.jobs.enqueue("trying.wait", number="1")
        job = await queue.job(await key_of(queue))
        assert job is not None
        await queue.abort(job, "aborted from ui")
        ended = await queue.job(job.key)
        assert ended is not None
        assert ended.status is Status.ABORTED
        assert await gateway.valkey.ttl(job.id) > 0


async def test_abort_of_a_dead_workers_job_expires(gateway: Gateway) -> None:
    async with gateway.running():
        queue = gateway.jobs.queues["default"]
        assert await gateway.jobs.enqueue("trying.wait", number="1")
        job = await queue.dequeue(1)
        assert job is not None
        await job.update(status=Status.ACTIVE)
        await queue.abort(job, "aborted from ui")
        assert await gateway.valkey.ttl(job.id) > 0
