"""Minimal HTTP/1.1 on asyncio for benchmarks: the other side is measured."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

Handler = Callable[[bytes, bytes], "bytes | Late | None"]
"""Request line and body to the whole response; None leaves the request without an answer."""


@dataclass(frozen=True)
class Late:
    """A response after a delay in seconds."""

    response: bytes
    after: float


def response(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a whole JSON response."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: "
    return head + str(len(body)).encode() + b"\r\n\r\n" + body


class Served(asyncio.Protocol):
    """One connection of a server that answers at once."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _content_length(self._buffer, end)
            if len(self._buffer) < end + 4 + length:
                return
            line = self._buffer[: self._buffer.find(b"\r\n")]
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            answer = self._handle(line, body)
            if self._transport is None or answer is None:
                continue
            if isinstance(answer, Late):
                asyncio.get_running_loop().call_later(answer.after, self._transport.write, answer.response)
            else:
                self._transport.write(answer)


def _content_length(head: bytes, end: int) -> int:
    lowered = head[:end].lower()
    at = lowered.find(b"content-length:")
    if at < 0:
        return 0
    stop = lowered.find(b"\r\n", at)
    return int(lowered[at + 15 : stop if stop >= 0 else end])


class Client(asyncio.Protocol):
    """One kept connection: sends a request, waits for its answer, and returns its status."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: asyncio.Future[int] | None = None
        self.body = b""
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending request."""
        self.is_closed = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionResetError("closed"))

    def data_received(self, data: bytes) -> None:
        """Complete the pending request once its answer is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _content_length(self._buffer, end)
        if len(self._buffer) < end + 4 + length:
            return
        status = int(self._buffer[9:12])
        self.body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = b""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(status)

    async def send(self, request: bytes) -> int:
        """Return the status of the answer; its body is in ``body``. Raises OSError when the connection breaks."""
        if self._transport is None or self.is_closed:
            raise ConnectionResetError("not connected")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
