"""Request ids, the request log and request metrics."""

import re
import time

import structlog
from opentelemetry.trace import INVALID_SPAN, Span

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.client_ip import CLIENT, client_network
from mpesa_gateway.correlation import current_request_id, use_request_id
from mpesa_gateway.http.request_spans import describe_request, request_span
from mpesa_gateway.http.response_headers import with_defaults
from mpesa_gateway.ids import Ids
from mpesa_gateway.metrics.definitions import OTHER, KernelMetrics
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.tracing import Tracing, is_enabled

log = structlog.get_logger("mpesa_gateway.http")

KNOWN = "mpesa_gateway_known"
"""Scope key: the caller is known. Rejections of others are sampled in the log."""

SLOWED = "mpesa_gateway_slowed"
"""Scope key: the request exceeded its address's rate."""

_VALID_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")

QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Polled paths, logged only on errors."""


_SAMPLED = 60.0
"""Seconds per log line for rejections of one kind and address."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Metric labels; clients may send other methods."""


_BOUND = ("merchant_id", "key_id", "payment_id")


class RequestIds:
    """ASGI middleware: keeps a valid X-Request-ID or creates one; logs and counts requests."""

    def __init__(self, app: ASGIApp, ids: Ids, metrics: KernelMetrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._ids = ids
        self._metrics = metrics
        self._tracing = tracing or Tracing()
        self._is_traced = is_enabled(self._tracing.tracer)
        self._refusals = Sampler(_SAMPLED)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode("ascii") if _VALID_ID.match(given) else self._ids.new("req")
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
        raw_method = scope["method"]
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
            # A callback's path contains its token.
            template = scope.get("path_template") or "(unknown)"
            elapsed = time.perf_counter() - began
            method = raw_method if raw_method in _METHODS else OTHER
            self._metrics.requests.labels(method, template, str(status)).inc()
            self._metrics.request_seconds.labels(template).observe(elapsed)
            if template not in QUIET or status >= 500:
                self._log(scope, method=raw_method, route=template, status=status, ms=round(elapsed * 1000, 1))
            if span.is_recording():
                bound = structlog.contextvars.get_contextvars()
                describe_request(
                    span, method, template, status, {name: bound[name] for name in _BOUND if name in bound}
                )

    def _log(self, scope: Message, *, method: str, route: str, status: int, ms: float) -> None:
        more: dict[str, int] = {}
        if status >= 400 and not scope.get(KNOWN, False):
            left_out = self._refusals.admit((client_network(scope.get(CLIENT, "")), route, status))
            if left_out is None:
                return
            more = {"left_out": left_out} if left_out else {}
        log.info("request", method=method, route=route, status=status, ms=ms, **more)
