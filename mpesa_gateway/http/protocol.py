"""HTTP/1.1 as we serve it: a guard on each connection, and uvicorn's own protocol behind it.

The guard reads the connection strictly and writes each request anew for uvicorn, one at a time and in one form only.
A byte that the client sent never reaches uvicorn's parser unless the guard has said what it is part of. uvicorn's
protocol is used as asyncio's interface has it, and by the two hooks that uvicorn documents: ``http`` and ``load``.
"""

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
"""Seconds after ``http.body_timeout`` until the connection is closed: the application answers 408 first."""

_LINGER = 2.0
"""Seconds that a refused client has to read the refusal, before the connection is closed."""

_DISCARDED = 131_072
"""Bytes that are discarded with a refusal and after it. A client that sends more waits until the connection closes."""

_HELD = 65_536
"""Bytes of later requests that are held while an earlier one is worked on. Beyond them the client is not read."""

_LOG_AGAIN = 1.0
"""Seconds between two lines in the log about refused connections."""

_STATE = "mpesa_gateway_connection"

Waits = Literal["head", "next", "body", "write"]
"""What a connection waits for its client to do. In this order, connections are closed when there are too many."""


class ConnectionLimiter:
    """The connections of one server. The longest-waiting one is closed where there are too many."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._logged_at = -_LOG_AGAIN
        self._not_logged = 0
        self._all: set[Connection] = set()
        self._waiting: dict[Waits, dict[Connection, None]] = {"head": {}, "next": {}, "body": {}, "write": {}}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def is_crowded(self) -> bool:
        """Whether more connections are open than the settings allow, and none of them waits for its client."""
        return self.most is not None and len(self._all) > self.most

    def admit(self, connection: "Connection") -> bool:
        """Add a connection; closes another one for it when there are too many. False when there is no room.

        A quarter more than the bound is admitted while none waits for its client: callbacks may be among them.
        """
        if self.most is not None and len(self._all) >= self.most:
            has_room = self._close_one() or len(self._all) < self.most * 5 // 4
            if not has_room:
                return False
        self._all.add(connection)
        return True

    def remove(self, connection: "Connection") -> None:
        """Forget a connection. Does nothing for one that is forgotten already."""
        self._all.discard(connection)
        self.move(connection, None)

    def move(self, connection: "Connection", waits: Waits | None) -> None:
        """Note what a connection waits for from now on, None while the application works on its request."""
        if connection.waits is not None:
            self._waiting[connection.waits].pop(connection, None)
        connection.waits = waits if connection in self._all else None
        if connection.waits is not None:
            self._waiting[connection.waits][connection] = None

    def log_refusal(self, refusal: ApiError, request_id: str) -> None:
        """Log a refused connection: one a second, with the number of those left out before it."""
        now = time.monotonic()
        if now - self._logged_at < _LOG_AGAIN:
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
    """How we serve: uvicorn's settings, with the guard and its bounds. Each worker process is handed it whole.

    ``limit_concurrency`` bounds connections. uvicorn's own check of it would answer in plain text.
    """

    def __init__(self, app: Any, bounds: HttpConfig, *, limit_concurrency: int | None = None, **more: Any) -> None:
        super().__init__(
            app, http="httptools", ws="none", access_log=False, log_config=None, server_header=False, **more
        )
        self.bounds = bounds
        self.most_connections = limit_concurrency

    def load(self) -> None:
        """Load the application and the protocol, and put the guard before it."""
        super().load()
        self.loaded_app = _ResponseInProgress(self.loaded_app)
        guarded = partial(
            Connection,
            behind=self.http_protocol_class,
            bounds=self.bounds,
            crowd=ConnectionLimiter(self.most_connections),
        )
        # The server calls it with keywords, as it calls the class.
        self.http_protocol_class = cast("type[asyncio.Protocol]", guarded)


class _ResponseInProgress:
    """ASGI: tells a connection when the application has begun its answer, and when it has ended it."""

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

        async def send_noted(message: Message) -> None:
            nonlocal is_answered
            connection.is_answering = True
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False) and not is_answered:
                # From here on the connection may be at work on its next request.
                is_answered = True
                connection.answered()

        try:
            await self._app(scope, receive, send_noted)
        finally:
            if not is_answered:
                # uvicorn answers 500 or hangs up once this has returned.
                asyncio.get_running_loop().call_soon(connection.answered)


class Connection(asyncio.Protocol):
    """The guard of one connection: bounds every head, body and wait, and refuses in the envelope.

    A request is passed on once the one before it has been answered, and the client has read of that answer. A refusal
    ends the connection, after the answers that are owed to earlier requests.

    Over 20 methods: asyncio's callbacks, and one small method for each state of the reader, which share its buffer.
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
        self._crowd = crowd
        self._default_headers: list[tuple[bytes, bytes]] = server_state.default_headers
        self._served: set[Any] = server_state.connections
        self._make_behind = partial(behind, app_state=app_state | {_STATE: self}, server_state=server_state, **more)
        self._behind: asyncio.Protocol | None = None
        """Made for the first head: a silent connection costs as little as it can."""
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._read = bytearray()
        self._looked_at = 0
        self._next = self._head
        """Reads the next part of what has come; False when more has to come."""
        self._left = 0
        self._trailers = 0
        self._is_over = False
        """Nothing more is read of this connection."""
        self._is_detached = False
        self._is_last = False
        self._is_fresh = True
        """No whole head has come yet."""
        self.waits: Waits | None = None
        self.is_answering = False
        self.is_answered = True

    # -- asyncio's interface ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a head; abort where there is no room."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._crowd.admit(self):
            self._is_over = self._is_detached = True
            self._transport.abort()
            return
        self._served.add(self)
        self._note_wait()
        self._start_timer("head", self._bounds.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel every timer, and pass it on unless uvicorn has been told already."""
        self._is_over = True
        self._crowd.remove(self)
        for name in list(self._timers):
            self._cancel_timer(name)
        self._read.clear()
        self._detach(exc)

    def eof_received(self) -> None:
        """Do nothing more. The transport closes itself."""

    def pause_writing(self) -> None:
        """Start to bound how long the client may read nothing."""
        if self._behind is not None:
            self._behind.pause_writing()
        self._start_timer("write", self._bounds.stall_timeout, self._transport.abort)
        self._note_wait()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._cancel_timer("write")
        self._note_wait()
        if self._behind is not None:
            self._behind.resume_writing()
        if self.is_answered and self._is_open and self._next == self._head:
            self._await_next()

    def data_received(self, data: bytes) -> None:
        """Read as far as the next request may be passed on. What follows a refusal is discarded."""
        if not self._is_open:
            self._discard(len(data))
            return
        self._read += data
        self._continue()
        if len(self._read) > _HELD and self._is_open:
            self._transport.pause_reading()

    def shutdown(self) -> None:
        """Called by the server at its stop, where no head has come."""
        self._transport.close()

    # -- what the application does ------------------------------------------------------------------------------------

    @property
    def is_crowded(self) -> bool:
        """Whether too many connections are open."""
        return self._crowd.is_crowded

    def answered(self) -> None:
        """The application has answered the request: the next one may follow."""
        if self.is_answered:
            return
        self.is_answered = True
        if self._is_open and self._next == self._head:
            self._await_next()

    def evict(self) -> None:
        """Close the connection, which waits for its client, to make room for another one."""
        self._crowd.remove(self)
        self._is_over = True
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    @property
    def _is_open(self) -> bool:
        return not self._is_over and not self._transport.is_closing()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _continue(self) -> None:
        try:
            while self._is_open and self._next():
                pass
        except ApiError as refusal:
            self._refuse(refusal)

    def _await_next(self) -> None:
        """The request is whole and answered: the next head is waited for."""
        if self._is_last:
            # uvicorn closes it. What follows is nobody's request.
            self._is_over = True
            return
        self._looked_at = 0
        self._note_wait()
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._continue()

    def _head(self) -> bool:
        if not self.is_answered or "write" in self._timers or not self._read:
            return False
        self._skip_empty_lines()
        end = self._read.find(b"\r\n\r\n", max(0, self._looked_at - 3))
        most = self._bounds.max_head_bytes
        if max(end, self._left) > most or (end < 0 and len(self._read) + self._left > most):
            raise head_too_large(most)
        if end < 0:
            if self._read and cannot_be_head(self._read, self._looked_at):
                raise InvalidRequest("what came is no HTTP: send HTTP/1.1 (RFC 9112)")
            self._looked_at = len(self._read)
            if "head" not in self._timers:
                self._start_timer("head", self._bounds.head_timeout, self._head_is_late)
            return False
        head = read_head(bytes(self._read[:end]), most)
        del self._read[: end + 4]
        self._cancel_timer("head")
        self._left, self._trailers, self._looked_at = head.length or 0, 0, 0
        self._is_last = head.is_last
        self.is_answered = self.is_answering = False
        self._is_fresh = False
        if head.length != 0:
            self._next = self._chunk_size if head.length is None else self._body
            self._start_timer("body", self._bounds.body_timeout + _GRACE, self._body_is_late)
        self._note_wait()
        if self._behind is None:
            self._served.discard(self)
            self._behind = self._make_behind()
            self._behind.connection_made(self._transport)
        self._pass_on(head.written)
        return True

    def _skip_empty_lines(self) -> None:
        """Discard empty lines before a head. ``_left`` counts them: they must not come for ever."""
        while self._read.startswith(b"\r\n"):
            del self._read[:2]
            self._left += 2
            self._looked_at = 0

    def _body(self) -> bool:
        part = self._take()
        if not part:
            return False
        self._pass_on(part)
        if not self._left:
            self._finish_request()
        return True

    def _chunk_size(self) -> bool:
        line = self._line(MOST_CHUNK_LINE)
        if line is None:
            return False
        self._left = read_chunk_size(line)
        self._next = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        if self._left:
            part = self._take()
            if part:
                self._pass_on(b"%x\r\n%b\r\n" % (len(part), part))
            return bool(part)
        if len(self._read) < 2:
            return False
        if not self._read.startswith(b"\r\n"):
            raise InvalidRequest("a chunk is longer than the size before it (RFC 9112)")
        del self._read[:2]
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
        self._pass_on(b"0\r\n\r\n")
        self._finish_request()
        return True

    def _pass_on(self, data: bytes) -> None:
        cast("asyncio.Protocol", self._behind).data_received(data)

    def _finish_request(self) -> None:
        """The body has been passed on to its end."""
        self._cancel_timer("body")
        self._next = self._head
        self._left = self._looked_at = 0
        if self.is_answered:
            self._await_next()
        else:
            self._note_wait()

    def _take(self) -> bytes:
        part = bytes(self._read[: self._left])
        del self._read[: self._left]
        self._left -= len(part)
        return part

    def _line(self, most: int) -> bytes | None:
        end = self._read.find(b"\r\n")
        if max(end, len(self._read) if end < 0 else 0) > most:
            raise InvalidRequest("a line of a body in chunks is too long (RFC 9112)")
        if end < 0:
            return None
        line = bytes(self._read[:end])
        del self._read[: end + 2]
        return line

    # -- what ends it -------------------------------------------------------------------------------------------------

    def _refuse(self, refusal: ApiError) -> None:
        """Read no more of this connection, and answer why, unless the request has its answer or the start of one."""
        has_begun, is_in_body = self.is_answering, self._next != self._head
        self._is_over = True
        self._left = len(self._read)
        self._read.clear()
        for name in ("head", "body"):
            self._cancel_timer(name)
        self._detach(ConnectionAbortedError())
        if is_in_body and has_begun:
            self._transport.close()
        else:
            self._respond_and_close(refusal)

    def _discard(self, count: int) -> None:
        """Count what is discarded with a refusal: reading it costs as much as reading a request."""
        self._left += count
        if self._left > _DISCARDED and "linger" in self._timers:
            self._transport.pause_reading()

    def _detach(self, exc: Exception | None) -> None:
        """Tell uvicorn, once, that the connection is lost. It tells the application, and writes nothing more."""
        if not self._is_detached:
            self._is_detached = True
            self._served.discard(self)
            if self._behind is not None:
                self._behind.connection_lost(exc)

    def _respond_and_close(self, refusal: ApiError) -> None:
        """Answer, and leave the client a moment to read it: closing on unread bytes would take the answer away."""
        request_id = Ids(SystemClock()).new("req")
        self._crowd.log_refusal(refusal, request_id)
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
        self._crowd.move(self, "head")
        self._start_timer("linger", _LINGER, self._transport.close)
        self._discard(0)

    def _head_is_late(self) -> None:
        if self._read or self._left:
            self._refuse(RequestTimeout(f"no whole request within {self._bounds.head_timeout:g} seconds"))
        else:
            # A client that has sent nothing is answered nothing.
            self._transport.close()

    def _body_is_late(self) -> None:
        if self._transport.is_reading():
            self._refuse(RequestTimeout(f"the body did not come within {self._bounds.body_timeout:g} seconds"))
        else:
            # It is the application that does not read.
            self._start_timer("body", self._bounds.body_timeout + _GRACE, self._body_is_late)

    def _note_wait(self) -> None:
        """Tell the crowd what this connection waits for."""
        waits: Waits | None
        if "write" in self._timers:
            waits = "write"
        elif not self.is_answered:
            waits = None if self._next == self._head else "body"
        else:
            waits = "head" if self._is_fresh else "next"
        self._crowd.move(self, waits)

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
