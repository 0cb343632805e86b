"""Checks that each queue has a worker, and that the crons run."""

from collections.abc import AsyncIterator
from datetime import datetime

from saq import Status

from mpesa_gateway.check_result import CheckContext, CheckResult, note, ok, problem, warning
from mpesa_gateway.config import QueueName
from mpesa_gateway.runtime import Runtime

_LATE = 60.0
"""Seconds of delay from which a cron counts as late."""

_MANY = 10_000
"""Waiting jobs from which new ones are late."""


async def check_workers(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    queues = gateway.jobs.queues
    workers = {name: await queue.count_workers() for name, queue in queues.items()}
    waiting = {name: await queue.count("queued") for name, queue in queues.items()}
    in_all = sum(waiting.values())
    if not any(workers.values()):
        yield problem(
            "workers.alive",
            f"no worker is running: {in_all} jobs wait, no webhook is sent and no payment status is queried",
            "start `mpesa-gateway worker` (or `serve --with-worker` for a small shop), and keep it running (systemd)",
        )
        return
    if unserved := [name for name, count in workers.items() if not count]:
        yield problem(
            "workers.alive",
            f"no worker serves {' and '.join(f'the queue `{name}`' for name in unserved)}: "
            f"{sum(waiting[name] for name in unserved)} jobs wait there",
            f"start `mpesa-gateway worker --queues {','.join(unserved)}`, or remove --queues (worker.queues) from "
            "the workers that run",
        )
    else:
        least = min(workers.values())
        yield ok(
            "workers.alive",
            f"{least} {'worker serves' if least == 1 else 'workers serve'} each queue, {in_all} jobs waiting",
        )
    for name, count in waiting.items():
        if count > _MANY:
            yield warning(
                "workers.waiting",
                f"{count} jobs wait in the queue `{name}`: new ones are done late",
                f"start more workers, raise worker.{name}, or find the slow job",
            )
    yield await _crons(gateway, examination)
    failed = sum([await queue.count_failed() for queue in queues.values()])
    if failed:
        yield note(
            "workers.failed",
            f"{failed} failed jobs are listed; their work is recorded in Postgres, and sweepers redo it",
            "see why under /ops",
        )


async def crons_not_run(gateway: Runtime, now: datetime) -> tuple[list[str], list[str]]:
    """Return the crons that no worker knows, and the late ones."""
    crons: dict[str, QueueName] = {
        name: job.queue for name, job in gateway.jobs_by_name.items() if job.cron is not None
    }
    names = list(crons)
    jobs = [await gateway.jobs.queues[queue].job(f"cron:{name}") for name, queue in crons.items()]
    missing = [name for name, job in zip(names, jobs, strict=True) if job is None]
    late = [
        name
        for name, job in zip(names, jobs, strict=True)
        if job is not None
        and job.status is not Status.ACTIVE
        and now.timestamp() - max(job.scheduled, job.completed / 1000, job.touched / 1000) > _LATE
    ]
    return missing, late


async def _crons(gateway: Runtime, examination: CheckContext) -> CheckResult:
    missing, late = await crons_not_run(gateway, examination.now)
    if missing:
        return problem(
            "workers.crons",
            f"no worker knows the crons {', '.join(missing)}",
            "give the workers the same release and the same `plugins` as this command, and start them again",
        )
    if late:
        return problem(
            "workers.crons",
            f"crons are late: {', '.join(late)}",
            "see the workers' logs: they may be stuck, or their clocks may be wrong",
        )
    return ok(
        "workers.crons",
        f"all {sum(job.cron is not None for job in gateway.jobs_by_name.values())} crons run",
    )
