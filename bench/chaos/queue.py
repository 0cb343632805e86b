"""Looks into the queue once all has settled: no job may be stuck there, and every cron must fire again."""

import asyncio
import time
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.queues import GatewayQueue


async def stuck_jobs(gateway: Gateway, patience: float) -> list[str]:
    """Jobs that stay active, or owed and nowhere, for ``patience`` seconds; crons come and go, and are none."""
    until = time.monotonic() + patience
    suspects = await _at_work(gateway)
    while suspects and time.monotonic() < until:
        await asyncio.sleep(0.5)
        now = await _at_work(gateway)
        # The same run of the same job: one that has started anew meanwhile is not stuck.
        suspects = {job: started for job, started in suspects.items() if now.get(job, "gone") == started}
    return sorted(suspects)


async def _at_work(gateway: Gateway) -> dict[str, int]:
    """Every job that is active, or that is neither queued nor scheduled though it is owed: when it started."""
    found: dict[str, int] = {}
    for queue in gateway.jobs.queues.values():
        found |= await _at_work_in(queue)
    return found


async def _at_work_in(queue: GatewayQueue) -> dict[str, int]:
    redis: Any = queue.redis
    async with redis.pipeline(transaction=True) as pipe:
        pipe.lrange(queue.namespace("active"), 0, -1)
        pipe.lrange(queue.namespace("queued"), 0, -1)
        # Score 0: to be run at once; a later one is scheduled, and will be queued when its time has come.
        pipe.zrangebyscore(queue.namespace("incomplete"), 0, 0)
        active, queued, owed = await pipe.execute()
    names = [name.decode() for name in {*active, *(set(owed) - set(queued))}]
    jobs = await queue.jobs(map(queue.job_key_from_id, names)) if names else []
    return {name: 0 if job is None else job.started for name, job in zip(names, jobs, strict=True)}
