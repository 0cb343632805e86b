"""Looks whether somebody works the queue, and whether what runs by the clock does run."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING

from saq import Status

from mpesa_gateway.doctor.observation import Examination, Observation, note, ok, problem, warning

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_LATE = 60.0
"""Seconds after its time from which a cron counts as not running."""

_MANY = 10_000
"""Waiting jobs from which it takes long until a new one is done."""


async def look_at_workers(gateway: "Gateway", examination: Examination) -> AsyncIterator[Observation]:
    """The workers' heartbeats, the crons, and what waits or failed."""
    queue = gateway.jobs.queue
    info = await queue.info()
    workers, waiting = len(info["workers"]), info["queued"]
    if not workers:
        yield problem(
            "workers.alive",
            f"no worker is running: {waiting} jobs wait, no webhook goes out and no payment is asked about",
            "start `mpesa-gateway worker` (or `serve --with-worker` for a small shop), and keep it running (systemd)",
        )
        return
    yield ok("workers.alive", f"{workers} {'worker' if workers == 1 else 'workers'} at work, {waiting} jobs waiting")
    if waiting > _MANY:
        yield warning(
            "workers.waiting",
            f"{waiting} jobs wait: what is new is done late",
            "start more workers, or find the slow job",
        )
    yield await _crons(gateway, examination)
    failed = await queue.count_failed()
    if failed:
        yield note(
            "workers.failed",
            f"{failed} failed jobs are listed; what they were for is owed by Postgres and taken up by sweepers",
            "see why under /ops",
        )


async def crons_not_run(gateway: "Gateway", now: datetime) -> tuple[list[str], list[str]]:
    """What runs by the clock and no worker knows, and what is late."""
    names = [name for name, job in gateway.jobs_by_name.items() if job.cron is not None]
    jobs = await gateway.jobs.queue.jobs([f"cron:{name}" for name in names])
    missing = [name for name, job in zip(names, jobs, strict=True) if job is None]
    late = [
        name
        for name, job in zip(names, jobs, strict=True)
        if job is not None
        and job.status is not Status.ACTIVE
        and now.timestamp() - max(job.scheduled, job.completed / 1000) > _LATE
    ]
    return missing, late


async def _crons(gateway: "Gateway", examination: Examination) -> Observation:
    missing, late = await crons_not_run(gateway, examination.now)
    if missing:
        return problem(
            "workers.crons",
            f"no worker knows what runs by the clock as {', '.join(missing)}",
            "give the workers the same release and the same `plugins` as this command, and start them again",
        )
    if late:
        return problem(
            "workers.crons",
            f"what runs by the clock is late: {', '.join(late)}",
            "see the workers' logs: they may be stuck, or their clocks may be wrong",
        )
    return ok(
        "workers.crons",
        f"all {sum(job.cron is not None for job in gateway.jobs_by_name.values())} tasks that run by the clock do",
    )
