"""SAQ's own pages about the queues, behind our login: its script, its styles and the JSON that they ask for.

SAQ's Starlette application is not mounted: it keeps its queues and its path in module globals, where they would meet
those of a host that shows its own queues, and it would make Starlette a requirement.
"""

import base64
import hashlib
from functools import cache
from gzip import decompress
from html import escape
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from saq import Job
from saq.web.common import STATIC_PATH

from mpesa_gateway.errors import NotFound
from mpesa_gateway.http.html import asked_path, headers, moved
from mpesa_gateway.queues import GatewayQueue
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.admission import POLLED, home, session_of, signed_in
from mpesa_gateway_ops.answers import ANSWERS

_MEDIA = {"pico.min.css": "text/css", "snabbdom.js": "text/javascript", "app.js": "text/javascript"}

_STYLE = (
    ":root { --font-size: 15px } main.container { overflow-x: auto } th, td { white-space: nowrap } "
    "details p { white-space: pre-wrap; overflow-wrap: anywhere } "
    "@media (prefers-color-scheme: light) { :root:not([data-theme=dark]) { "
    "--primary: #0b6485; --primary-hover: #074a63; "
    "--muted-color: #4d5b66; --color: #2b3742 } } "
    "@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { "
    "--primary: #4dc4ea; --primary-hover: #8fdcf5; "
    "--muted-color: #a3b3bf; --color: #c8d2da } }"
)
"""SAQ's tables are wider than a phone, its traces of errors have lines, its colours are too pale to be read by all."""

_FOCUSABLE = (
    "new MutationObserver(() => document.querySelector('main')?.setAttribute('tabindex', '0'))"
    ".observe(document, {childList: true, subtree: true})"
)
"""A script that lets the keyboard reach SAQ's table, which scrolls sideways on a narrow screen."""

_PAGE: dict[str, Any] = {
    "public": True,
    "include_in_schema": False,
    "guards": [signed_in],
    "exception_handlers": ANSWERS,
}
_POLL: dict[str, Any] = _PAGE | {POLLED: True}


@get(
    ["/ops/queues", "/ops/queues/queues/{queue:str}", "/ops/queues/queues/{queue:str}/jobs/{job:str}"],
    **_PAGE,
)
async def queue_page(request: Request[Any, Any, Any]) -> Response[Any]:
    """The page that SAQ's script fills; its addresses all start with the one of the list of queues."""
    here = f"{home(request)}/queues"
    if asked_path(request) == "/ops/queues":
        return moved(f"{here}/")
    script = f'const root_path = new URL("{here}", location.href).pathname; {_FOCUSABLE}'
    html = (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Queue · mpesa-gateway</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href='data:,'>"
        f"<link rel=stylesheet href='{here}/static/pico.min.css'><style>{_STYLE}</style></head><body>"
        f"<nav class=container aria-label='Back'><ul><li><a href='{escape(home(request))}/queue'>← Queue</a></li>"
        f"<li><a href='{escape(home(request))}/failed'>Failed jobs</a></li></ul></nav><div id=app></div>"
        f"<script>{script}</script><script src='{here}/static/snabbdom.js'></script>"
        f"<script src='{here}/static/app.js'></script></body></html>"
    )
    policy = (
        f"default-src 'none'; script-src 'self' {_source_of(script)}; style-src 'self' {_source_of(_STYLE)}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return Response(html, media_type="text/html", headers=headers(policy))


@get("/ops/queues/static/{name:str}", **_PAGE)
async def queue_asset(name: FromPath[str]) -> Response[bytes]:
    """One of the files that come with SAQ."""
    if name not in _MEDIA:
        raise NotFound("SAQ has no such file")
    return Response(_asset(name), media_type=_MEDIA[name], headers=headers())


@get("/ops/queues/api/queues", **_POLL)
async def queue_list(gateway: NamedDependency[Any]) -> Response[Any]:
    """The queues in numbers."""
    return _json({"queues": [await queue.info() for queue in gateway.jobs.queues.values()]})


@get("/ops/queues/api/queues/{queue:str}", **_POLL)
async def queue_detail(queue: FromPath[str], gateway: NamedDependency[Any]) -> Response[Any]:
    """The queue with its workers and the next jobs."""
    info: dict[str, Any] = dict(await _queue(gateway, queue).info(jobs=True))
    info["jobs"] = [job | {"kwargs": repr(job.get("kwargs", {}))} for job in info["jobs"]]
    return _json({"queue": info})


@get("/ops/queues/api/queues/{queue:str}/jobs/{job:str}", **_POLL)
async def queue_job(queue: FromPath[str], job: FromPath[str], gateway: NamedDependency[Any]) -> Response[Any]:
    """One job."""
    found = (await _job(gateway, queue, job)).to_dict()
    return _json({"job": found | {name: repr(found[name]) for name in ("kwargs", "result") if name in found}})


@post("/ops/queues/api/queues/{queue:str}/jobs/{job:str}/retry", **_PAGE)
async def retry_job(
    request: Request[Any, Any, Any], queue: FromPath[str], job: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Put a job on the queue once more."""
    found = await _job(gateway, queue, job)
    await _note(gateway, request, "job.retried", found)
    await found.retry("retried by an operator")
    return _json({})


@post("/ops/queues/api/queues/{queue:str}/jobs/{job:str}/abort", **_PAGE)
async def abort_job(
    request: Request[Any, Any, Any], queue: FromPath[str], job: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Stop a job, or take it off the queue."""
    found = await _job(gateway, queue, job)
    await _note(gateway, request, "job.aborted", found)
    await found.abort("aborted by an operator")
    return _json({})


async def _note(gateway: Runtime, request: Request[Any, Any, Any], action: str, job: Job) -> None:
    """Put on record what an operator does with a job."""
    await gateway.audit.record(
        action,
        merchant_id=None,
        actor=session_of(request).visitor.actor,
        subject_id=job.key,
        detail={"job": job.function},
    )


def _queue(gateway: Runtime, name: str) -> GatewayQueue:
    for queue in gateway.jobs.queues.values():
        if queue.name == name:
            return queue
    raise NotFound("there is no such queue")


async def _job(gateway: Runtime, queue: str, key: str) -> Job:
    found = await _queue(gateway, queue).job(key)
    if found is None:
        raise NotFound("there is no such job: a finished one is kept for a minute, a failed one for a week")
    return found


def _source_of(text: str) -> str:
    """How a Content-Security-Policy names the one inline style or script that it lets through."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: dict[str, Any]) -> Response[bytes]:
    body = msgspec.json.encode(content, enc_hook=str)
    return Response(body, status_code=200, media_type="application/json", headers=headers())


@cache
def _asset(name: str) -> bytes:
    packed = STATIC_PATH / f"{name}.gz"
    content = decompress(packed.read_bytes()) if packed.exists() else (STATIC_PATH / name).read_bytes()
    # SAQ's link from a job to its queue forgets where its pages are mounted.
    return content.replace(b'href: "/queues/" + job.queue', b'href: root_path + "/queues/" + job.queue')


routes = (queue_page, queue_asset, queue_list, queue_detail, queue_job, retry_job, abort_job)
