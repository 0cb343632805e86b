"""Checks of the queue at the end of a run: no job is stuck, and every cron is scheduled."""

import asyncio
import time
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.queues import GatewayQueue


async def stuck_jobs(gateway: Gateway, patience: float) -> list[str]:
    """Return jobs that stay active, or incomplete and unqueued, for ``patience`` seconds, crons excluded."""
    until = time.monotonic() + patience
    suspects = await _at_work(gateway)
    while suspects and time.monotonic() < until:
        await asyncio.sleep(0.5)
        now = await _at_work(gateway)
        # The same run of the same job: a restarted one is not stuck.
        suspects = {job: started for job, started in suspects.items() if now.get(job, "gone") == started}
    return sorted(suspects)


async def _at_work(gateway: Gateway) -> dict[str, int]:
    """Return the start time of every job that is active, or incomplete without being queued or scheduled."""
    found: dict[str, int] = {}
    for queue in gateway.jobs.queues.values():
        found |= await _at_work_in(queue)
    return found


async def _at_work_in(queue: GatewayQueue) -> dict[str, int]:
    redis: Any = queue.redis
    async with redis.pipeline(transaction=True) as pipe:
        pipe.lrange(queue.namespace("active"), 0, -1)
        pipe.lrange(queue.namespace("queued"), 0, -1)
        # Score 0: due at once; a later score is scheduled and will be queued when due.
        pipe.zrangebyscore(queue.namespace("incomplete"), 0, 0)
        active, queued, incomplete = await pipe.execute()
    names = [name.decode() for name in {*active, *(set(incomplete) - set(queued))}]
    jobs = await queue.jobs(map(queue.job_key_from_id, names)) if names else []
    return {name: 0 if job is None else job.started for name, job in zip(names, jobs, strict=True)}
