"""HTTP/1.1 with a strict guard in front of uvicorn's protocol."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, cast

import msgspec
import structlog
import uvicorn

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.clock import SystemClock
from mpesa_gateway.config import HttpConfig
from mpesa_gateway.errors import ApiError, RequestTimeout
from mpesa_gateway.http.envelope import Failure
from mpesa_gateway.http.load_shedding import CROWDED
from mpesa_gateway.http.request_head import (
    MOST_CHUNK_LINE,
    InvalidRequest,
    cannot_be_head,
    check_trailer,
    head_too_large,
    read_chunk_size,
    read_head,
)
from mpesa_gateway.ids import Ids

log = structlog.get_logger(__name__)

_GRACE = 5.0
"""Seconds after ``http.body_timeout``, so that the application can answer 408."""

_LINGER = 2.0
"""Seconds for a client to read a rejection."""

_DISCARDED = 131_072
"""Bytes discarded after a rejection before reading pauses."""

_MOST_PIPELINED = 65_536
"""Bytes of pipelined requests before reading pauses."""

_LOG_INTERVAL = 1.0

_STATE = "mpesa_gateway_connection"

Waits = Literal["head", "next", "body", "write"]
"""Waits for the client, in the order of eviction."""


class ConnectionLimiter:
    """The connections of one server; evicts the longest-waiting one at the limit."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._logged_at = -_LOG_INTERVAL
        self._not_logged = 0
        self._all: set[Connection] = set()
        self._waiting: dict[Waits, dict[Connection, None]] = {"head": {}, "next": {}, "body": {}, "write": {}}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def is_crowded(self) -> bool:
        return self.most is not None and len(self._all) > self.most

    def admit(self, connection: "Connection") -> bool:
        """Returns False without room.

        Up to a quarter more is admitted if no connection waits for its client: callbacks may be among them.
        """
        if self.most is not None and len(self._all) >= self.most:
            has_room = self._close_one() or len(self._all) < self.most * 5 // 4
            if not has_room:
                return False
        self._all.add(connection)
        return True

    def remove(self, connection: "Connection") -> None:
        self._all.discard(connection)
        self.move(connection, None)

    def move(self, connection: "Connection", waits: Waits | None) -> None:
        if connection.waits is not None:
            self._waiting[connection.waits].pop(connection, None)
        connection.waits = waits if connection in self._all else None
        if connection.waits is not None:
            self._waiting[connection.waits][connection] = None

    def log_refusal(self, refusal: ApiError, request_id: str) -> None:
        now = time.monotonic()
        if now - self._logged_at < _LOG_INTERVAL:
            self._not_logged += 1
            return
        log.warning(
            "request_refused",
            status=refusal.status,
            code=refusal.code.value,
            request_id=request_id,
            not_logged=self._not_logged,
        )
        self._logged_at, self._not_logged = now, 0

    def _close_one(self) -> bool:
        for queue in self._waiting.values():
            for connection in queue:
                connection.evict()
                return True
        return False


class ServerConfig(uvicorn.Config):
    """uvicorn's settings with the guard and its limits; pickled for worker processes.

    Uses two documented hooks: ``http`` and ``load``. uvicorn's own ``limit_concurrency`` answers in plain text.
    """

    def __init__(self, app: Any, bounds: HttpConfig, *, limit_concurrency: int | None = None, **more: Any) -> None:
        super().__init__(
            app, http="httptools", ws="none", access_log=False, log_config=None, server_header=False, **more
        )
        self.bounds = bounds
        self.most_connections = limit_concurrency

    def load(self) -> None:
        super().load()
        self.loaded_app = _ResponseInProgress(self.loaded_app)
        guarded = partial(
            Connection,
            behind=self.http_protocol_class,
            bounds=self.bounds,
            crowd=ConnectionLimiter(self.most_connections),
        )
        # The server passes keyword arguments only.
        self.http_protocol_class = cast("type[asyncio.Protocol]", guarded)


class _ResponseInProgress:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        connection: Connection | None = scope.get("state", {}).pop(_STATE, None)
        if connection is None:
            await self._app(scope, receive, send)
            return
        if connection.is_crowded:
            scope[CROWDED] = True

        is_answered = False

        async def send_tracked(message: Message) -> None:
            nonlocal is_answered
            connection.is_answering = True
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False) and not is_answered:
                # The connection may already process its next request.
                is_answered = True
                connection.answered()

        try:
            await self._app(scope, receive, send_tracked)
        finally:
            if not is_answered:
                # uvicorn answers 500 or closes the connection after this returns.
                asyncio.get_running_loop().call_soon(connection.answered)


class Connection(asyncio.Protocol):
    """The guard of one connection: limits heads, bodies and waits.

    Rewrites requests in canonical form, so that clients cannot desynchronise uvicorn's parser. Forwards the next
    request once the client reads the complete previous response. A rejection follows earlier responses and ends the
    connection.

    Over 20 methods: asyncio's callbacks and one per parser state, which share a buffer.
    """

    def __init__(
        self,
        *,
        behind: Callable[..., asyncio.Protocol],
        bounds: HttpConfig,
        crowd: ConnectionLimiter,
        app_state: dict[str, Any],
        server_state: Any,
        **more: Any,
    ) -> None:
        self._bounds = bounds
        self._limiter = crowd
        self._default_headers: list[tuple[bytes, bytes]] = server_state.default_headers
        self._served: set[Any] = server_state.connections
        self._make_inner = partial(behind, app_state=app_state | {_STATE: self}, server_state=server_state, **more)
        self._inner_protocol: asyncio.Protocol | None = None
        """Created at the first head: silent connections stay cheap."""
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._buffer = bytearray()
        self._scanned = 0
        self._next = self._head
        """Parses the next part; returns False if more bytes are needed."""
        self._remaining = 0
        self._trailers = 0
        self._has_stopped = False
        self._is_detached = False
        self._is_last = False
        self._is_fresh = True
        self.waits: Waits | None = None
        self.is_answering = False
        self.is_answered = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._limiter.admit(self):
            self._has_stopped = self._is_detached = True
            self._transport.abort()
            return
        self._served.add(self)
        self._update_wait()
        self._start_timer("head", self._bounds.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_stopped = True
        self._limiter.remove(self)
        for name in list(self._timers):
            self._cancel_timer(name)
        self._buffer.clear()
        self._detach(exc)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def pause_writing(self) -> None:
        if self._inner_protocol is not None:
            self._inner_protocol.pause_writing()
        self._start_timer("write", self._bounds.stall_timeout, self._transport.abort)
        self._update_wait()

    def resume_writing(self) -> None:
        self._cancel_timer("write")
        self._update_wait()
        if self._inner_protocol is not None:
            self._inner_protocol.resume_writing()
        if self.is_answered and self._is_open and self._next == self._head:
            self._await_next()

    def data_received(self, data: bytes) -> None:
        if not self._is_open:
            self._discard(len(data))
            return
        self._buffer += data
        self._continue()
        if len(self._buffer) > _MOST_PIPELINED and self._is_open:
            self._transport.pause_reading()

    def shutdown(self) -> None:
        """Called by the stopping server before the first head."""
        self._transport.close()

    @property
    def is_crowded(self) -> bool:
        return self._limiter.is_crowded

    def answered(self) -> None:
        if self.is_answered:
            return
        self.is_answered = True
        if self._is_open and self._next == self._head:
            self._await_next()

    def evict(self) -> None:
        self._limiter.remove(self)
        self._has_stopped = True
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    @property
    def _is_open(self) -> bool:
        return not self._has_stopped and not self._transport.is_closing()

    def _continue(self) -> None:
        try:
            while self._is_open and self._next():
                pass
        except ApiError as refusal:
            self._refuse(refusal)

    def _await_next(self) -> None:
        if self._is_last:
            # Bytes after the last request belong to no request.
            self._has_stopped = True
            return
        self._scanned = 0
        self._update_wait()
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._continue()

    def _head(self) -> bool:
        if not self.is_answered or "write" in self._timers or not self._buffer:
            return False
        self._skip_empty_lines()
        end = self._buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        most = self._bounds.max_head_bytes
        if max(end, self._remaining) > most or (end < 0 and len(self._buffer) + self._remaining > most):
            raise head_too_large(most)
        if end < 0:
            if self._buffer and cannot_be_head(self._buffer, self._scanned):
                raise InvalidRequest("not HTTP: send HTTP/1.1 (RFC 9112)")
            self._scanned = len(self._buffer)
            if "head" not in self._timers:
                self._start_timer("head", self._bounds.head_timeout, self._head_is_late)
            return False
        head = read_head(bytes(self._buffer[:end]), most)
        del self._buffer[: end + 4]
        self._cancel_timer("head")
        self._remaining, self._trailers, self._scanned = head.length or 0, 0, 0
        self._is_last = head.is_last
        self.is_answered = self.is_answering = False
        self._is_fresh = False
        if head.length != 0:
            self._next = self._chunk_size if head.length is None else self._body
            self._start_timer("body", self._bounds.body_timeout + _GRACE, self._body_is_late)
        self._update_wait()
        if self._inner_protocol is None:
            self._served.discard(self)
            self._inner_protocol = self._make_inner()
            self._inner_protocol.connection_made(self._transport)
        self._forward(head.written)
        return True

    def _skip_empty_lines(self) -> None:
        """``_remaining`` counts empty lines towards the head's limit."""
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
            self._remaining += 2
            self._scanned = 0

    def _body(self) -> bool:
        part = self._take()
        if not part:
            return False
        self._forward(part)
        if not self._remaining:
            self._finish_request()
        return True

    def _chunk_size(self) -> bool:
        line = self._line(MOST_CHUNK_LINE)
        if line is None:
            return False
        self._remaining = read_chunk_size(line)
        self._next = self._chunk if self._remaining else self._trailer
        return True

    def _chunk(self) -> bool:
        if self._remaining:
            part = self._take()
            if part:
                self._forward(b"%x\r\n%b\r\n" % (len(part), part))
            return bool(part)
        if len(self._buffer) < 2:
            return False
        if not self._buffer.startswith(b"\r\n"):
            raise InvalidRequest("a chunk is longer than the size before it (RFC 9112)")
        del self._buffer[:2]
        self._next = self._chunk_size
        return True

    def _trailer(self) -> bool:
        line = self._line(self._bounds.max_head_bytes - self._trailers)
        if line is None:
            return False
        self._trailers += len(line) + 2
        if line:
            check_trailer(line)
            return True
        self._forward(b"0\r\n\r\n")
        self._finish_request()
        return True

    def _forward(self, data: bytes) -> None:
        cast("asyncio.Protocol", self._inner_protocol).data_received(data)

    def _finish_request(self) -> None:
        self._cancel_timer("body")
        self._next = self._head
        self._remaining = self._scanned = 0
        if self.is_answered:
            self._await_next()
        else:
            self._update_wait()

    def _take(self) -> bytes:
        part = bytes(self._buffer[: self._remaining])
        del self._buffer[: self._remaining]
        self._remaining -= len(part)
        return part

    def _line(self, most: int) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if max(end, len(self._buffer) if end < 0 else 0) > most:
            raise InvalidRequest("a line of a body in chunks is too long (RFC 9112)")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _refuse(self, refusal: ApiError) -> None:
        has_started, is_in_body = self.is_answering, self._next != self._head
        self._has_stopped = True
        self._remaining = len(self._buffer)
        self._buffer.clear()
        for name in ("head", "body"):
            self._cancel_timer(name)
        self._detach(ConnectionAbortedError())
        if is_in_body and has_started:
            self._transport.close()
        else:
            self._respond_and_close(refusal)

    def _discard(self, count: int) -> None:
        """Reading discarded bytes costs as much as reading a request."""
        self._remaining += count
        if self._remaining > _DISCARDED and "linger" in self._timers:
            self._transport.pause_reading()

    def _detach(self, exc: Exception | None) -> None:
        if not self._is_detached:
            self._is_detached = True
            self._served.discard(self)
            if self._inner_protocol is not None:
                self._inner_protocol.connection_lost(exc)

    def _respond_and_close(self, refusal: ApiError) -> None:
        """Closing with unread bytes would reset the connection, so it closes after a delay."""
        request_id = Ids(SystemClock()).new("req")
        self._limiter.log_refusal(refusal, request_id)
        body = msgspec.json.encode(Failure(errors=refusal.problems, request_id=request_id))
        lines = [
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
            *(f"{name.decode()}: {value.decode()}" for name, value in self._default_headers),
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        if refusal.retry_after is not None:
            lines.append(f"retry-after: {refusal.retry_after}")
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._limiter.move(self, "head")
        self._start_timer("linger", _LINGER, self._transport.close)
        self._discard(0)

    def _head_is_late(self) -> None:
        if self._buffer or self._remaining:
            self._refuse(RequestTimeout(f"no complete request within {self._bounds.head_timeout:g} seconds"))
        else:
            self._transport.close()

    def _body_is_late(self) -> None:
        if self._transport.is_reading():
            self._refuse(RequestTimeout(f"the body did not arrive within {self._bounds.body_timeout:g} seconds"))
        else:
            # The application has paused reading.
            self._start_timer("body", self._bounds.body_timeout + _GRACE, self._body_is_late)

    def _update_wait(self) -> None:
        waits: Waits | None
        if "write" in self._timers:
            waits = "write"
        elif not self.is_answered:
            waits = None if self._next == self._head else "body"
        else:
            waits = "head" if self._is_fresh else "next"
        self._limiter.move(self, waits)

    def _start_timer(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_timer(name)
        self._timers[name] = self._loop.call_later(seconds, self._end_wait, name, then)

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _end_wait(self, name: str, then: Callable[[], None]) -> None:
        del self._timers[name]
        then()
