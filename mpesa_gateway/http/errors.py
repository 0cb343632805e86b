"""Error responses with request id, without traces."""

from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from valkey.exceptions import ConnectionError as ValkeyConnectionError

from mpesa_gateway.asgi_types import Send
from mpesa_gateway.correlation import current_request_id
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE
from mpesa_gateway.errors import ApiError, Code, InternalError, Problem, RequestTimeout
from mpesa_gateway.http.envelope import Failure
from mpesa_gateway.logs import trace

log = structlog.get_logger(__name__)

NOTHING_HERE = "no such route: see /schema"
NOT_ALLOWED = "this route does not support this method: see /schema"
DATABASE_AWAY = "the gateway cannot reach its database at the moment: try again with the same Idempotency-Key"

_BY_STATUS = {
    404: (Code.NOT_FOUND, NOTHING_HERE),
    405: (Code.METHOD_NOT_ALLOWED, NOT_ALLOWED),
    413: (Code.PAYLOAD_TOO_LARGE, "the body is too large: at most 64 KiB are accepted"),
    415: (Code.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json"),
}


def failure(problems: list[Problem], status: int, headers: dict[str, str] | None = None) -> Response[bytes]:
    body = msgspec.json.encode(Failure(errors=problems, request_id=current_request_id()))
    return Response(body, status_code=status, media_type="application/json", headers=headers)


async def refuse(send: Send, refusal: ApiError, more: dict[str, str] | None = None) -> None:
    """Send a rejection before routing."""
    body = msgspec.json.encode(Failure(errors=refusal.problems, request_id=current_request_id()))
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body))} | _headers_of(refusal) | (more or {})
    headers = [(name.lower().encode(), text.encode()) for name, text in lines.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _refused(request: Request[Any, Any, Any], refusal: ApiError) -> Response[bytes]:
    headers = _headers_of(refusal)
    if isinstance(refusal, RequestTimeout) and str(request.scope.get("http_version", "")).startswith("1"):
        # Unread bytes would be parsed as the next request.
        headers["Connection"] = "close"
    return failure(refusal.problems, refusal.status, headers)


def _headers_of(refusal: ApiError) -> dict[str, str]:
    return {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}


def _http(_: Request[Any, Any, Any], problem: HTTPException) -> Response[bytes]:
    if isinstance(problem, ValidationException):
        return failure(_validation_problems(problem), 422)
    if problem.status_code in _BY_STATUS:
        code, message = _BY_STATUS[problem.status_code]
        return failure([Problem(code=code.value, message=message)], problem.status_code, problem.headers)
    if problem.status_code < 500:
        return failure([Problem(code=Code.VALIDATION_ERROR.value, message=problem.detail)], 400)
    return _unexpected(_, problem)


def _validation_problems(problem: ValidationException) -> list[Problem]:
    extra: Any = problem.extra
    entries: list[dict[str, Any]] = [entry for entry in extra or [] if isinstance(entry, dict)]  # pyright: ignore[reportUnknownVariableType]
    if any(entry.get("message") == "'data'" for entry in entries):
        # Litestar's message for a missing body.
        return [Problem(code=Code.VALIDATION_ERROR.value, field="body", message="send a JSON object")]
    found = [
        Problem(
            code=Code.VALIDATION_ERROR.value,
            field=str(entry.get("key", "body")).removeprefix("data"),
            # The entry's own text is the library's.
            message="is not valid: see /schema",
        )
        for entry in entries
    ]
    return found or [Problem(code=Code.VALIDATION_ERROR.value, field="body", message="send a JSON object")]


def _unavailable(_: Request[Any, Any, Any], problem: Exception) -> Response[bytes]:
    log.error("dependency_unavailable", error=type(problem).__name__)
    return failure(
        [Problem(code=Code.SERVICE_UNAVAILABLE.value, message=DATABASE_AWAY, retryable=True)], 503, {"Retry-After": "5"}
    )


def _unexpected(_: Request[Any, Any, Any], problem: Exception) -> Response[bytes]:
    log.error("unexpected_error", exception=trace(problem))
    message = "internal error: report the request_id to the gateway's host"
    return failure(InternalError(message).problems, InternalError.status)


def handlers() -> dict[int | type[Exception], Any]:
    unreachable: dict[int | type[Exception], Any] = {
        kind: _unavailable for kind in (*UNREACHABLE, *OVERLOADED) if issubclass(kind, Exception)
    }
    return {
        Exception: _unexpected,
        HTTPException: _http,
        **unreachable,
        ValkeyConnectionError: _unavailable,
        ApiError: _refused,
    }
