"""Error responses under /ops: a page, or JSON if the client does not accept HTML."""

from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from valkey.exceptions import ConnectionError as ValkeyConnectionError
from valkey.exceptions import ValkeyError

from mpesa_gateway.correlation import current_request_id
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE
from mpesa_gateway.errors import ApiError, NotFound, ServiceUnavailable
from mpesa_gateway.http.errors import failure
from mpesa_gateway.http.templating import accepts_html, headers, redirect
from mpesa_gateway.logs import trace
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.access import home, known_session
from mpesa_gateway_ops.errors import NotSignedIn, SecondFactorMissing, SecondFactorPending
from mpesa_gateway_ops.layout import Layout
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.settings import OpsSettings

log = structlog.get_logger(__name__)


def _answer_refused(request: Request[Any, Any, Any], refused: ApiError) -> Response[Any]:
    wait = {"Retry-After": str(refused.retry_after)} if refused.retry_after is not None else {}
    if not accepts_html(request.headers.get("accept", "")):
        return failure(refused.problems, refused.status, headers() | wait)
    gateway: Runtime = request.app.state.gateway
    if isinstance(refused, SecondFactorPending):
        return redirect(f"{home(request)}/login-code")
    if isinstance(refused, SecondFactorMissing) and request.method == "GET":
        return redirect(f"{home(request)}/account/second-factor")
    if isinstance(refused, NotSignedIn):
        login_url = gateway.settings(OpsSettings).login_url
        by_host = gateway.port(People).host_login is not None
        return redirect(login_url if by_host and login_url else f"{home(request)}/login")
    return gateway.port(Layout).refusal(request, known_session(request), str(refused), refused.status)


def _answer_without_queue(request: Request[Any, Any, Any], _: ValkeyError) -> Response[Any]:
    message = "the queue (Valkey) does not answer: payments go on, and pending jobs run once it is back"
    return _answer_refused(request, ServiceUnavailable(message, retry_after=5))


def _answer_without_database(request: Request[Any, Any, Any], problem: Exception) -> Response[Any]:
    log.error("dependency_unavailable", error=type(problem).__name__)
    message = "the database does not answer at the moment: try again"
    return _answer_refused(request, ServiceUnavailable(message, retry_after=5))


def _answer_http(request: Request[Any, Any, Any], problem: HTTPException) -> Response[Any]:
    if problem.status_code < 500:
        return _answer_refused(request, NotFound("there is no such page"))
    return _answer_unexpected(request, problem)


def _answer_unexpected(request: Request[Any, Any, Any], problem: Exception) -> Response[Any]:
    log.error("unexpected_error", exception=trace(problem))
    gateway: Runtime = request.app.state.gateway
    message = f"something went wrong on our side: the log has more under {current_request_id()}"
    return gateway.port(Layout).refusal(request, known_session(request), message, 500)


ANSWERS: dict[int | type[Exception], Any] = {
    ApiError: _answer_refused,
    ValkeyError: _answer_without_queue,
    # Needed here because the application has handlers for the same classes.
    ValkeyConnectionError: _answer_without_queue,
    **{kind: _answer_without_database for kind in (*UNREACHABLE, *OVERLOADED) if issubclass(kind, Exception)},
    HTTPException: _answer_http,
    Exception: _answer_unexpected,
}
"""The exception handlers of every route under /ops."""
