"""The operators' pages over HTTP: login, overview, failed jobs; SAQ's own pages are next door."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from valkey.exceptions import ValkeyError

from mpesa_gateway.app import Gateway
from mpesa_gateway.errors import TooManyFailures
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.health import examine
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops import pages, queue_pages
from mpesa_gateway_ops.admission import (
    ANSWERS,
    COOKIE,
    checked_form,
    cookie_of,
    form_of,
    from_our_own_page,
    home,
    session_of,
    signed_in,
)
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.sessions import Sessions

_JOBS_A_PAGE = 25

_OPEN: dict[str, Any] = {
    "public": True,
    "include_in_schema": False,
    "guards": [from_our_own_page],
    "exception_handlers": ANSWERS,
}
_INSIDE: dict[str, Any] = _OPEN | {"guards": [signed_in]}


@get("/ops/login", **_OPEN)
async def login_page(request: Request[Any, Any, Any]) -> Response[str]:
    """The page that asks for name and password."""
    return pages.answer(pages.login(home(request)))


@post("/ops/login", **_OPEN)
async def sign_in(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Open a session for who knows the password."""
    fields = await form_of(request)
    name, password = fields.get("name", ""), Secret(fields.get("password", ""))
    try:
        token = await gateway.services.get(Operators).sign_in(name, password, address_of(request))
    except WrongPassword:
        page = pages.login(home(request), name=name, problem="The name or the password is wrong.")
        return pages.answer(page, status=401)
    except TooManyFailures as refused:
        wait = refused.retry_after or 1
        problem = f"Too many failed attempts from this address. Try again in {-(-wait // 60)} min."
        return pages.answer(
            pages.login(home(request), name=name, problem=problem), status=429, more={"Retry-After": str(wait)}
        )
    lifetime = int(gateway.services.get(Sessions).lifetime.total_seconds())
    return pages.moved(home(request), more={"Set-Cookie": _cookie(gateway, token.reveal(), lifetime)})


@post("/ops/logout", **_INSIDE)
async def sign_out(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """End this session."""
    await checked_form(request)
    await gateway.services.get(Sessions).close(cookie_of(request))
    return pages.moved(f"{home(request)}/login", more={"Set-Cookie": _cookie(gateway, "", 0)})


@get("/ops", **_INSIDE)
async def overview(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """How the gateway is, and what the queue does."""
    parts = await examine(gateway)
    return pages.answer(pages.overview(home(request), session_of(request), parts, await _counts(gateway)))


@get("/ops/failed", **_INSIDE)
async def failed_jobs(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """The jobs that failed, newest first."""
    number = _page_number(request.query_params.get("page", ""))
    queue = gateway.jobs.queue
    jobs = await queue.failed_jobs((number - 1) * _JOBS_A_PAGE, _JOBS_A_PAGE)
    has_more = await queue.count_failed() > number * _JOBS_A_PAGE
    note = {"yes": "The job is on the queue again.", "no": "That job is no longer among the failed ones."}.get(
        request.query_params.get("retried", ""), ""
    )
    return pages.answer(
        pages.failed_jobs(home(request), session_of(request), jobs, number=number, has_more=has_more, note=note)
    )


@post("/ops/failed/retry", **_INSIDE)
async def retry_failed(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Put a failed job on the queue once more."""
    fields = await checked_form(request)
    job = await gateway.jobs.queue.retry_failed(fields.get("key", ""))
    if job is not None:
        await queue_pages.note(gateway, request, "job.retried", job)
    number = _page_number(fields.get("page", ""))
    return pages.moved(f"{home(request)}/failed?page={number}&retried={'no' if job is None else 'yes'}")


async def _counts(gateway: Gateway) -> dict[str, int] | None:
    queue = gateway.jobs.queue
    try:
        info = await queue.info()
        failed = await queue.count_failed()
    except ValkeyError:
        return None
    return {
        "waiting": info["queued"],
        "running": info["active"],
        "scheduled": info["scheduled"],
        "failed": failed,
        "workers": len(info["workers"]),
    }


def _cookie(gateway: Gateway, value: str, seconds: int) -> str:
    """The session's cookie. Without a Path it belongs to the folder of /ops/login, wherever we are mounted."""
    is_secure = urlsplit(gateway.config.public_url).scheme == "https"
    secure = "; Secure" if is_secure else ""
    return f"{COOKIE}={value}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _page_number(text: str) -> int:
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 6 else 1


routes = (login_page, sign_in, sign_out, overview, failed_jobs, retry_failed, *queue_pages.routes)
