"""HTTP at our own door: nobody holds a connection by being slow, or memory by headers, and every refusal has a form."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import msgspec
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mpesa_gateway.clock import SystemClock
from mpesa_gateway.config import HttpConfig
from mpesa_gateway.errors import PayloadTooLarge, Refused, TooSlow
from mpesa_gateway.http.envelope import Failure
from mpesa_gateway.http.gate import CROWDED
from mpesa_gateway.ids import Ids

log = structlog.get_logger(__name__)

_MOST_HEADERS = 100
"""Of one request: browsers and proxies together send a third of it."""

_GRACE = 5.0
"""Seconds after ``http.body_timeout`` until the connection goes: the application answers 408 first."""

_LINGER = 2.0
"""Seconds that a refused client has to read why, before the connection goes."""


class HeadTooLarge(PayloadTooLarge):
    """The request line and its headers are more than we take."""

    status = 431


class NoHttp(Refused):
    """What came is no HTTP/1.1 request."""


class ServerConfig(uvicorn.Config):
    """How we serve: uvicorn's settings, with our protocol and its bounds. A process of several is handed it whole."""

    def __init__(self, app: Any, bounds: HttpConfig, **more: Any) -> None:
        super().__init__(
            app, http=GatewayProtocol, ws="none", access_log=False, log_config=None, server_header=False, **more
        )
        self.bounds = bounds


class GatewayProtocol(HttpToolsProtocol):
    """One connection: uvicorn's own protocol, with an end to every wait and a bound to every head.

    A refusal is said in the envelope, after the answers that are still owed to earlier requests of the connection.
    Beyond ``limit_concurrency`` requests are marked as crowded, and the gate answers them; a quarter more is for those
    with priority, and whoever connects beyond that is hung up on.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._bounds = cast("ServerConfig", self.config).bounds
        self._most = self.limit_concurrency
        # Or uvicorn answers by itself: in plain text, and without Retry-After.
        self.limit_concurrency = None
        self._is_in_head = True
        self._has_begun = False
        self._head_bytes = 0
        self._refusal: Refused | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # -- the connection -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there: the first request's head is waited for."""
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most * 5 // 4:
            transport.abort()
            return
        self._wait("head", self._bounds.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        for name in list(self._timers):
            self._wait_no_more(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes; what follows a refusal is not read."""
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        self._look_at_head()

    def _look_at_head(self) -> None:
        """Part of a head has come: it must not grow for ever, nor come for ever."""
        if not self._is_refused and self._is_in_head and self._is_awaited:
            if self._head_bytes > self._bounds.max_head_bytes:
                self._refuse(_head_too_large(self._bounds))
            elif "head" not in self._timers:
                # A byte of the next request ends uvicorn's own waiting for it.
                self._wait("head", self._bounds.head_timeout, self._head_is_late)

    @property
    def _is_refused(self) -> bool:
        """Whether nothing more is read of this connection."""
        return self._refusal is not None

    @property
    def _is_awaited(self) -> bool:
        """Whether something of a head has come and not all of it. Empty lines before it count as well."""
        return self._has_begun or self._head_bytes > 0

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._wait("write", self._bounds.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It takes some again."""
        self._wait_no_more("write")
        super().resume_writing()

    # -- the request ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_head = self._has_begun = True

    def on_headers_complete(self) -> None:
        """The whole head of a request. One that cannot be taken never reaches the application."""
        if self._is_refused:
            return
        self._wait_no_more("head")
        self._is_in_head = self._has_begun = False
        self._head_bytes = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if size > self._bounds.max_head_bytes or len(self.headers) > _MOST_HEADERS:
            self._refuse(_head_too_large(self._bounds))
        elif hosts > 1 or (not hosts and cast(Any, self.parser).get_http_version() == "1.1"):
            self._refuse(NoHttp("send one Host header (RFC 9112, section 3.2)"))
        else:
            if self._most is not None and max(len(self.connections), len(self.tasks)) > self._most:
                cast("dict[str, Any]", self.scope)[CROWDED] = True
            super().on_headers_complete()
            self._wait("body", self._bounds.body_timeout + _GRACE, self._body_is_late)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request; another may follow."""
        if not self._is_refused:
            self._wait_no_more("body")
            self._is_in_head, self._head_bytes = True, 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        was_last = not self.pipeline
        super().on_response_complete()
        if self._refusal is not None and was_last and not self.transport.is_closing():
            self._say_and_close(self._refusal)

    # -- what ends it ---------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        if not self._is_refused:
            self._refuse(NoHttp(f"{msg[:1].lower()}{msg[1:].rstrip('.')}: send HTTP/1.1 (RFC 9112)"))

    def _refuse(self, refusal: Refused) -> None:
        """Read no more of this connection, and say why: at once, or once every earlier request has its answer."""
        self._refusal = refusal
        for name in ("head", "body"):
            self._wait_no_more(name)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            self._say_and_close(refusal)
        elif cycle.more_body:
            # It is this request's own body that cannot be taken: the application shall not wait for the rest.
            if self.pipeline:
                self.pipeline.popleft()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
            else:
                self._say_and_close(refusal)

    def _say_and_close(self, refusal: Refused) -> None:
        """Answer, and leave the client a moment to read it: closing on unread bytes would take the answer away."""
        request_id = Ids(SystemClock()).new("req")
        log.warning("request_refused", status=refusal.status, code=refusal.code.value, request_id=request_id)
        body = msgspec.json.encode(Failure(errors=refusal.problems, request_id=request_id))
        lines = [
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
            *(f"{name.decode()}: {value.decode()}" for name, value in self.server_state.default_headers),
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        if refusal.retry_after is not None:
            lines.append(f"retry-after: {refusal.retry_after}")
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait("linger", _LINGER, self.transport.close)

    def _head_is_late(self) -> None:
        if self.flow.read_paused:
            # It is we who do not read.
            self._wait("head", self._bounds.head_timeout, self._head_is_late)
        elif self._is_awaited:
            self._refuse(TooSlow(f"no whole request within {self._bounds.head_timeout:g} seconds"))
        else:
            # Whoever has said nothing is answered nothing.
            self.transport.close()

    def _body_is_late(self) -> None:
        if self.flow.read_paused:
            self._wait("body", self._bounds.body_timeout + _GRACE, self._body_is_late)
        else:
            self._refuse(TooSlow(f"the body did not come within {self._bounds.body_timeout:g} seconds"))

    def _wait(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        self._wait_no_more(name)
        self._timers[name] = self.loop.call_later(seconds, self._end_wait, name, then)

    def _wait_no_more(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _end_wait(self, name: str, then: Callable[[], None]) -> None:
        del self._timers[name]
        then()


def _head_too_large(bounds: HttpConfig) -> HeadTooLarge:
    return HeadTooLarge(
        f"send at most {_MOST_HEADERS} headers, and {bounds.max_head_bytes} bytes with the request line"
    )
