"""The jobs that have used up their tries: found newest first, and put on the queue once more by hand."""

from datetime import UTC, datetime

import msgspec
from saq import Job

from mpesa_gateway.pages import Act, Done, Menu, Page, Shown, Visit

_A_PAGE = 25


class _Query(msgspec.Struct, frozen=True):
    page: int = 1


async def failed_jobs(visit: Visit) -> Shown:
    """A page of them."""
    number = max(1, min(visit.read_query(_Query).page, 10_000))
    found: list[tuple[str, Job]] = []
    count = 0
    for name, queue in visit.gateway.jobs.queues.items():
        # Each queue lists a bounded number; a page is cut from all of them together.
        found += [(name, job) for job in await queue.failed_jobs(0, number * _A_PAGE)]
        count += await queue.count_failed()
    found.sort(key=lambda one: one[1].completed, reverse=True)
    shown = found[(number - 1) * _A_PAGE : number * _A_PAGE]
    return Shown(
        "failed_jobs.html",
        {
            "jobs": [_view(name, job) for name, job in shown],
            "number": number,
            "has_more": count > number * _A_PAGE,
        },
    )


async def retry(visit: Visit) -> Done:
    """Put a failed job on the queue once more."""
    queues = visit.gateway.jobs.queues
    queue = next((queue for name, queue in queues.items() if name == visit.text("queue")), None)
    job = None if queue is None else await queue.retry_failed(visit.text("key"))
    if job is not None:
        await visit.gateway.audit.record(
            "job.retried",
            merchant_id=None,
            actor=visit.visitor.actor,
            subject_id=job.key,
            detail={"job": job.function},
        )
    said = "That job is no longer among the failed ones." if job is None else "The job is on the queue again."
    number = visit.text("page")
    return Done(f"failed?page={number}" if number.isdigit() else "failed", said)


def _view(queue: str, job: Job) -> dict[str, object]:
    return {
        "queue": queue,
        "key": job.key,
        "name": job.function,
        "kwargs": msgspec.json.encode(job.kwargs or {}, enc_hook=str).decode(),
        "status": job.status.value,
        "tries": job.attempts,
        "at": datetime.fromtimestamp(job.completed / 1000, UTC),
        "error": last_line(job.error),
    }


def last_line(error: str | None) -> str:
    """What a traceback comes to."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no error was told"


PAGE = Page("failed", "Failed jobs", failed_jobs, menu=Menu("Failed jobs", 81, "Gateway", "f"))
RETRY = Act("failed/retry", "retry_job", retry, back="failed")
