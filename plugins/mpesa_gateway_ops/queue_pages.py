"""SAQ's web UI inside the layout: its scripts and their JSON.

SAQ's Starlette application is not mounted: its module globals hold queues that a host may use itself.
"""

from datetime import UTC, datetime
from functools import cache
from gzip import decompress
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from saq import Job
from saq.job import TERMINAL_STATUSES, Status
from saq.web.common import STATIC_PATH

from mpesa_gateway.errors import Conflict, NotFound, require_found
from mpesa_gateway.http.templating import headers
from mpesa_gateway.ops_contract import Menu, Page, PageRequest, Permission, Rendered
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.queues import GatewayQueue
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.access import POLLED, session_of, signed_in, visitor_of
from mpesa_gateway_ops.error_pages import ANSWERS

_SCRIPTS = ("snabbdom.js", "queue.js", "app.js")
_JOBS_SHOWN = 50

_ROUTE: dict[str, Any] = {
    "public": True,
    "include_in_schema": False,
    "guards": [signed_in],
    "exception_handlers": ANSWERS,
}
_POLL: dict[str, Any] = _ROUTE | {POLLED: True}


async def _show(visit: PageRequest) -> Rendered:
    if "job" in visit.values:
        await _job(visit.gateway, visit.values["queue"], visit.values["job"])
    elif "queue" in visit.values:
        _queue(visit.gateway, visit.values["queue"])
    return Rendered("queue.html")


@get("/ops/queue/static/{name:str}", **_ROUTE)
async def queue_script(name: FromPath[str]) -> Response[bytes]:
    if name not in _SCRIPTS:
        raise NotFound("there is no such script")
    return Response(_script(name), media_type="text/javascript", headers=headers())


@get("/ops/queue/api/queues", **_POLL)
async def queue_list(gateway: NamedDependency[Any]) -> Response[Any]:
    return _json({"queues": [await queue.info() for queue in gateway.jobs.queues.values()]})


@get("/ops/queue/api/queues/{queue:str}", **_POLL)
async def queue_detail(
    request: Request[Any, Any, Any], queue: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Return a queue with its workers and the next 50 jobs."""
    info: dict[str, Any] = dict(await _queue(gateway, queue).info(jobs=True, limit=_JOBS_SHOWN))
    info["jobs"] = [_view(request, job, gateway) for job in info["jobs"]]
    return _json({"queue": info})


@get("/ops/queue/api/queues/{queue:str}/jobs/{job:str}", **_POLL)
async def queue_job(
    request: Request[Any, Any, Any], queue: FromPath[str], job: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    found: dict[str, Any] = (await _job(gateway, queue, job)).to_dict()
    return _json({"job": _view(request, found, gateway)})


@post("/ops/queue/api/queues/{queue:str}/jobs/{job:str}/retry", **_ROUTE)
async def retry_job(
    request: Request[Any, Any, Any], queue: FromPath[str], job: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Enqueue an ended job again."""
    found = await _job(gateway, queue, job)
    if found.status not in TERMINAL_STATUSES:
        raise Conflict("this job has not ended: retry it when it has failed")
    await _audit(gateway, request, "job.retried", found)
    await found.retry("retried by an operator")
    return _json({})


@post("/ops/queue/api/queues/{queue:str}/jobs/{job:str}/abort", **_ROUTE)
async def abort_job(
    request: Request[Any, Any, Any], queue: FromPath[str], job: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Cancel a running job, or remove a waiting one."""
    found = await _job(gateway, queue, job)
    if found.status in TERMINAL_STATUSES:
        raise Conflict("this job has ended: it cannot be aborted")
    await _audit(gateway, request, "job.aborted", found)
    await found.abort("aborted by an operator")
    return _json({})


async def _audit(gateway: Runtime, request: Request[Any, Any, Any], action: str, job: Job) -> None:
    await gateway.audit.record(
        action,
        merchant_id=None,
        actor=session_of(request).actor,
        subject_id=job.key,
        detail={"job": job.function},
    )


def _queue(gateway: Runtime, name: str) -> GatewayQueue:
    for queue in gateway.jobs.queues.values():
        if queue.name == name:
            return queue
    raise NotFound("there is no such queue")


async def _job(gateway: Runtime, queue: str, key: str) -> Job:
    return require_found(
        await _queue(gateway, queue).job(key),
        "there is no such job: a finished job is kept for a minute, a failed one for a week",
    )


def _view(request: Request[Any, Any, Any], job: dict[str, Any], gateway: Runtime) -> dict[str, Any]:
    """A job as SAQ's script shows it; phone numbers are masked for a viewer."""
    due = job.get("scheduled")
    if job.get("status") == Status.QUEUED and due and datetime.fromtimestamp(due, UTC) > gateway.clock.now():
        job["status"] = "scheduled"
    job |= {name: repr(job[name]) for name in ("kwargs", "result") if job.get(name)}
    if not visitor_of(request).may(Permission.NUMBERS):
        job |= {name: mask_phones(job[name]) for name in ("kwargs", "result", "error") if job.get(name)}
    return job


def _json(content: dict[str, Any]) -> Response[bytes]:
    body = msgspec.json.encode(content, enc_hook=str)
    return Response(body, status_code=200, media_type="application/json", headers=headers())


@cache
def _script(name: str) -> bytes:
    own = files("mpesa_gateway_ops").joinpath("static", name)
    if own.is_file():
        return own.read_bytes()
    packed = STATIC_PATH / f"{name}.gz"
    return decompress(packed.read_bytes()) if packed.exists() else (STATIC_PATH / name).read_bytes()


PAGES = (
    Page("queue", "Queue", _show, Permission.GATEWAY, menu=Menu("Queue", 80, "Gateway", "q")),
    Page("queue/queues/{queue}", "Queue", _show, Permission.GATEWAY),
    Page("queue/queues/{queue}/jobs/{job}", "Job", _show, Permission.GATEWAY),
)
routes = (queue_script, queue_list, queue_detail, queue_job, retry_job, abort_job)
