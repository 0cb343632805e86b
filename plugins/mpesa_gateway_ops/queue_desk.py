"""The queue as operators look at it: how much waits, who works, which jobs come next, and stopping one of them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from saq.job import ACTIVE_STATUSES, Status
from valkey.exceptions import ValkeyError

from mpesa_gateway.app import Gateway
from mpesa_gateway.pages import Act, Done, Menu, Page, Shown, Visit

_SHOWN = 50


@dataclass(frozen=True)
class QueuedJob:
    """A job that has not ended.

    ``at`` is when it is due, or was put on the queue; ``kwargs`` are ids only, as JSON, empty without any.
    """

    key: str
    name: str
    state: str
    at: datetime | None
    kwargs: str
    tries: int


@dataclass(frozen=True)
class AtWork:
    """A process that takes jobs, and what it has done since it was started."""

    name: str
    up: timedelta
    done: int
    retried: int
    failed: int


async def numbers(gateway: Gateway) -> dict[str, int] | None:
    """The queue in numbers, None when it does not answer."""
    queue = gateway.jobs.queue
    try:
        return _numbers(dict(await queue.info()), await queue.count_failed())
    except ValkeyError:
        return None


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
    queue = visit.gateway.jobs.queue
    try:
        info: dict[str, Any] = dict(await queue.info(jobs=True, limit=_SHOWN))
        failed = await queue.count_failed()
    except ValkeyError:
        return Shown("queue.html", {"queue": None})
    now = visit.gateway.clock.now()
    jobs = sorted((_job(job, now) for job in info["jobs"]), key=lambda job: (job.state != "running", job.at or now))
    workers = [_at_work(name, worker) for name, worker in sorted(info["workers"].items())]
    return Shown("queue.html", {"queue": _numbers(info, failed), "jobs": jobs[:_SHOWN], "workers": workers})


def _job(job: dict[str, Any], now: datetime) -> QueuedJob:
    seconds = job.get("scheduled") or job.get("queued", 0) / 1000
    at = datetime.fromtimestamp(seconds, UTC) if seconds else None
    state = "scheduled" if at is not None and at > now else "waiting"
    return QueuedJob(
        key=job["key"],
        name=job["function"],
        state="running" if job.get("status") == Status.ACTIVE else state,
        at=at,
        kwargs=msgspec.json.encode(job["kwargs"], enc_hook=str).decode() if job.get("kwargs") else "",
        tries=job.get("attempts", 0),
    )


def _at_work(name: str, worker: dict[str, Any]) -> AtWork:
    stats: dict[str, int] = worker.get("stats") or {}
    return AtWork(
        name=name[:8],
        up=timedelta(seconds=stats.get("uptime", 0) // 1000),
        done=stats.get("complete", 0),
        retried=stats.get("retried", 0),
        failed=stats.get("failed", 0),
    )


async def stop(visit: Visit) -> Done:
    """Stop a job, or take it off the queue; what it was to do stands in Postgres."""
    job = await visit.gateway.jobs.queue.job(visit.text("key"))
    if job is None or job.status not in ACTIVE_STATUSES:
        return Done("queue", "That job has ended meanwhile.")
    await visit.gateway.audit.record(
        "job.aborted", merchant_id=None, actor=visit.visitor.actor, subject_id=job.key, detail={"job": job.function}
    )
    await job.abort("aborted by an operator")
    return Done("queue", "The job was stopped. What is owed is taken up again by itself.")


PAGE = Page("queue", "Queue", queue, menu=Menu("Queue", 80, "Gateway", "q"))
STOP = Act("queue/stop", "stop_job", stop, back="queue")
