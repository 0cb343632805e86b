"""One name for each request, in the answer and in every line that is logged about it."""

import re
import time

import structlog
from opentelemetry.trace import INVALID_SPAN, Span

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.client_ip import CLIENT, neighbourhood
from mpesa_gateway.correlation import current_request_id, use_request_id
from mpesa_gateway.http.request_spans import describe_request, request_span
from mpesa_gateway.http.response_headers import with_defaults
from mpesa_gateway.ids import Ids
from mpesa_gateway.metrics.definitions import OTHER, KernelMetrics
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.tracing import Tracing, is_enabled

log = structlog.get_logger("mpesa_gateway.http")

KNOWN = "mpesa_gateway_known"
"""In the scope: whether the caller was known before anything was read. Refusals of strangers are logged in samples."""

SLOWED = "mpesa_gateway_slowed"
"""In the scope: whether the request came faster than its address may send them."""

_SANE = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")

QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Paths that are asked all day long and logged only when they fail."""


_SAMPLED = 60.0
"""Seconds in which one refusal of a kind is logged for each address; the next line says how many were left out."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are counted by their names; a caller may make up others."""


_BOUND = ("merchant_id", "key_id", "payment_id")
"""What whoever handles a request binds for its log lines."""


class RequestIds:
    """ASGI middleware: takes the caller's X-Request-ID if it is sane, else makes one; logs and counts each request."""

    def __init__(self, app: ASGIApp, ids: Ids, metrics: KernelMetrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._ids = ids
        self._metrics = metrics
        self._tracing = tracing or Tracing()
        self._is_traced = is_enabled(self._tracing.tracer)
        self._refusals = Sampler(_SAMPLED)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode("ascii") if _SANE.match(given) else self._ids.new("req")
        with use_request_id(request_id):
            try:
                if not self._is_traced or scope["path"] in QUIET:
                    await self._handle(scope, receive, send, INVALID_SPAN)
                    return
                with request_span(self._tracing, scope, request_id) as span:
                    await self._handle(scope, receive, send, span)
            finally:
                structlog.contextvars.unbind_contextvars(*_BOUND)

    async def _handle(self, scope: Message, receive: Receive, send: Send, span: Span) -> None:
        began = time.perf_counter()
        status = 0
        asked = scope["method"]
        request_id = current_request_id().encode()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*with_defaults(message.get("headers", ())), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            # The template and not the path: a callback's path carries its token.
            template = scope.get("path_template") or "(unknown)"
            took = time.perf_counter() - began
            method = asked if asked in _METHODS else OTHER
            self._metrics.requests.labels(method, template, str(status)).inc()
            self._metrics.request_seconds.labels(template).observe(took)
            if template not in QUIET or status >= 500:
                self._log(scope, method=asked, route=template, status=status, ms=round(took * 1000, 1))
            if span.is_recording():
                bound = structlog.contextvars.get_contextvars()
                describe_request(
                    span, method, template, status, {name: bound[name] for name in _BOUND if name in bound}
                )

    def _log(self, scope: Message, *, method: str, route: str, status: int, ms: float) -> None:
        """Log a request. Of a stranger's refusals, the first of a minute by address, route and status."""
        more: dict[str, int] = {}
        if status >= 400 and not scope.get(KNOWN, False):
            left_out = self._refusals.admit((neighbourhood(scope.get(CLIENT, "")), route, status))
            if left_out is None:
                return
            more = {"left_out": left_out} if left_out else {}
        log.info("request", method=method, route=route, status=status, ms=ms, **more)
