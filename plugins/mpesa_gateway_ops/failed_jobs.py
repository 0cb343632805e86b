"""The page of failed jobs: failure reason, retry and discard."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
from saq import Job
from saq.job import Status

from mpesa_gateway.ops_contract import Action, Menu, Page, PageRequest, Permission, Redirect, Rendered
from mpesa_gateway.queues import GatewayQueue

_A_PAGE = 25

_RAISED = re.compile(r"^(?:\w+\.)*([A-Za-z_]\w*)(?::|$)", re.MULTILINE)
"""The line below the last frame of a traceback, which names the exception."""


class _Query(msgspec.Struct, frozen=True):
    page: int = 1


async def _show(visit: PageRequest) -> Rendered:
    number = max(1, min(visit.read_query(_Query).page, 10_000))
    found: list[tuple[GatewayQueue, Job]] = []
    count = 0
    for queue in visit.gateway.jobs.queues.values():
        # Each queue lists a bounded number; the page is cut from all of them.
        found += [(queue, job) for job in await queue.failed_jobs(0, number * _A_PAGE)]
        count += await queue.count_failed()
    found.sort(key=lambda one: one[1].completed, reverse=True)
    shown = found[(number - 1) * _A_PAGE : number * _A_PAGE]
    return Rendered(
        "failed_jobs.html",
        {
            "jobs": [_view(queue, job) for queue, job in shown],
            "number": number,
            "has_more": count > number * _A_PAGE,
        },
    )


async def _retry(visit: PageRequest) -> Redirect:
    return await _take(visit, GatewayQueue.retry_failed, "job.retried", "The job is on the queue again.")


async def _discard(visit: PageRequest) -> Redirect:
    return await _take(visit, GatewayQueue.discard_failed, "job.discarded", "The job was discarded.")


async def _take(
    visit: PageRequest, take: Callable[[GatewayQueue, str], Awaitable[Job | None]], action: str, note: str
) -> Redirect:
    queue = next((queue for queue in visit.gateway.jobs.queues.values() if queue.name == visit.text("queue")), None)
    job = None if queue is None else await take(queue, visit.text("key"))
    if job is not None:
        await visit.gateway.audit.record(
            action,
            merchant_id=None,
            actor=visit.visitor.actor,
            subject_id=job.key,
            detail={"job": job.function},
        )
    number = visit.text("page")
    return Redirect(
        f"failed?page={number}" if number.isdigit() else "failed",
        "That job is no longer among the failed ones." if job is None else note,
    )


def _view(queue: GatewayQueue, job: Job) -> dict[str, object]:
    return {
        "queue": queue.name,
        "key": job.key,
        "name": job.function,
        "kwargs": msgspec.json.encode(job.kwargs, enc_hook=str).decode() if job.kwargs else "",
        "tries": job.attempts,
        "at": datetime.fromtimestamp(job.completed / 1000, UTC),
        "reason": failure_reason(job.status, job.error),
        "error": last_line(job.error),
    }


def failure_reason(status: Status, error: str | None) -> str:
    """Return ``worker_lost``, ``aborted``, ``timed_out``, the exception's name or ``unknown``."""
    if error == "swept":
        return "worker_lost"
    if status is Status.ABORTED:
        return "aborted"
    raised = _RAISED.search((error or "").rpartition("\n  File ")[2].partition("\n")[2])
    name = raised[1] if raised else "unknown"
    return "timed_out" if name == "TimeoutError" else name


def last_line(error: str | None) -> str:
    """Return a traceback's last line, at most 500 characters."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


PAGE = Page("failed", "Failed jobs", _show, Permission.GATEWAY, menu=Menu("Failed jobs", 81, "Gateway", "f"))
ACTS = (
    Action("failed/retry", "retry_job", _retry, Permission.OPERATE, back="failed"),
    Action("failed/discard", "discard_job", _discard, Permission.OPERATE, back="failed"),
)
