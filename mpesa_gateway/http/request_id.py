"""One name for each request, in the answer and in every line that is logged about it."""

import re
import time
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog

from mpesa_gateway.ids import Ids
from mpesa_gateway.measures import REQUEST_SECONDS, REQUESTS
from mpesa_gateway.meter import OTHER, Meter

log = structlog.get_logger("mpesa_gateway.http")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]
"""ASGI as its specification has it: what a server, a host and an application hand each other."""

_SANE = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")
_current: ContextVar[str] = ContextVar("mpesa_gateway_request_id", default="")

QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Paths that are asked all day long and logged only when they fail."""


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are counted by their names; a caller may make up others."""


def current_request_id() -> str:
    """The id of the request that is being handled, empty outside one."""
    return _current.get()


@contextmanager
def asked_by(request_id: str) -> Generator[None]:
    """A block whose log lines, and whose jobs, carry the id of the request that led to it."""
    token = _current.set(request_id)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            yield
    finally:
        _current.reset(token)


class RequestIds:
    """ASGI middleware: takes the caller's X-Request-ID if it is sane, else makes one; logs and counts each request."""

    def __init__(self, app: ASGIApp, ids: Ids, meter: Meter) -> None:
        self._app = app
        self._ids = ids
        self._meter = meter

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode("ascii") if _SANE.match(given) else self._ids.new("req")
        token = _current.set(request_id)
        outer = structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            # The template and not the path: a callback's path carries its token.
            template = scope.get("path_template") or "(unknown)"
            took = time.perf_counter() - began
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._meter.count(REQUESTS, method, template, str(status))
            self._meter.time(REQUEST_SECONDS, took, template)
            if template not in QUIET or status >= 500:
                log.info(
                    "request",
                    method=scope["method"],
                    route=template,
                    status=status,
                    ms=round(took * 1000, 1),
                )
            structlog.contextvars.reset_contextvars(**outer)
            structlog.contextvars.unbind_contextvars("merchant_id", "key_id", "payment_id")
            _current.reset(token)
