"""The queues on the operators' pages: jobs that wait and run, workers, and stopping a job."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from saq import Job
from saq.job import ACTIVE_STATUSES, Status
from valkey.exceptions import ValkeyError

from mpesa_gateway.pages import Act, Done, Menu, Page, Shown, Visit
from mpesa_gateway.runtime import Runtime

_SHOWN = 50


@dataclass(frozen=True)
class QueuedJob:
    """A job that has not ended.

    ``at`` is when it is due, or was put on the queue; ``kwargs`` are ids only, as JSON, empty without any.
    """

    queue: str
    key: str
    name: str
    state: str
    at: datetime | None
    kwargs: str
    tries: int


@dataclass(frozen=True)
class AtWork:
    """The worker of one queue in one process, and what it has done since it was started."""

    queue: str
    name: str
    up: timedelta
    done: int
    retried: int
    failed: int


async def numbers(gateway: Runtime) -> dict[str, int] | None:
    """All queues in numbers, with the workers of the queue that has fewest; None when they do not answer."""
    try:
        each = await _each(gateway)
    except ValkeyError:
        return None
    return _total(list(each.values()))


async def _each(gateway: Runtime) -> dict[str, dict[str, int]]:
    return {
        name: _numbers(dict(await queue.info()), await queue.count_failed())
        for name, queue in gateway.jobs.queues.items()
    }


def _total(each: list[dict[str, int]]) -> dict[str, int]:
    return {what: (min if what == "workers" else sum)(one[what] for one in each) for what in each[0]}


def _numbers(info: dict[str, Any], failed: int) -> dict[str, int]:
    return {
        "waiting": info["queued"],
        "running": info["active"],
        "scheduled": info["scheduled"],
        "failed": failed,
        "workers": len(info["workers"]),
    }


async def queue(visit: Visit) -> Shown:
    """All of it on one page, which needs no script."""
    now = visit.gateway.clock.now()
    each: dict[str, dict[str, int]] = {}
    jobs: list[QueuedJob] = []
    workers: list[AtWork] = []
    try:
        for name, queue in visit.gateway.jobs.queues.items():
            info: dict[str, Any] = dict(await queue.info(jobs=True, limit=_SHOWN))
            each[name] = _numbers(info, await queue.count_failed())
            jobs += [_job(name, job, now) for job in info["jobs"]]
            workers += [_at_work(name, worker, known) for worker, known in sorted(info["workers"].items())]
    except ValkeyError:
        return Shown("queue.html", {"queue": None})
    jobs.sort(key=lambda job: (job.state != "running", job.at or now))
    return Shown(
        "queue.html",
        {"queue": _total(list(each.values())), "each": each, "jobs": jobs[:_SHOWN], "workers": workers},
    )


def _job(queue: str, job: dict[str, Any], now: datetime) -> QueuedJob:
    seconds = job.get("scheduled") or job.get("queued", 0) / 1000
    at = datetime.fromtimestamp(seconds, UTC) if seconds else None
    state = "scheduled" if at is not None and at > now else "waiting"
    return QueuedJob(
        queue=queue,
        key=job["key"],
        name=job["function"],
        state="running" if job.get("status") == Status.ACTIVE else state,
        at=at,
        kwargs=msgspec.json.encode(job["kwargs"], enc_hook=str).decode() if job.get("kwargs") else "",
        tries=job.get("attempts", 0),
    )


def _at_work(queue: str, name: str, worker: dict[str, Any]) -> AtWork:
    stats: dict[str, int] = worker.get("stats") or {}
    return AtWork(
        queue=queue,
        name=name[:8],
        up=timedelta(seconds=stats.get("uptime", 0) // 1000),
        done=stats.get("complete", 0),
        retried=stats.get("retried", 0),
        failed=stats.get("failed", 0),
    )


async def find_job(visit: Visit) -> Job | None:
    """The job that a form names by its queue and key, None where there is none."""
    for name, queue in visit.gateway.jobs.queues.items():
        if name == visit.text("queue"):
            return await queue.job(visit.text("key"))
    return None


async def stop(visit: Visit) -> Done:
    """Stop a job, or take it off the queue; what it was to do stands in Postgres."""
    job = await find_job(visit)
    if job is None or job.status not in ACTIVE_STATUSES:
        return Done("queue", "That job has ended meanwhile.")
    await visit.gateway.audit.record(
        "job.aborted", merchant_id=None, actor=visit.visitor.actor, subject_id=job.key, detail={"job": job.function}
    )
    await job.abort("aborted by an operator")
    return Done("queue", "The job was stopped. What is owed is taken up again by itself.")


PAGE = Page("queue", "Queue", queue, menu=Menu("Queue", 80, "Gateway", "q"))
STOP = Act("queue/stop", "stop_job", stop, back="queue")
