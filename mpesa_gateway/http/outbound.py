"""An HTTP/1.1 client for untrusted servers."""

import asyncio
import re
import ssl
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import wassima

HEAD, BODY = 65_536, 65_536
"""Maximum bytes of all heads of a response, and of its body with framing."""

READS, PIECES = 250, 1_024
"""Maximum socket reads, and chunks plus interim responses.

Maximum head and body take 90 reads of 1,460 bytes.
"""

_LONGEST_LINE = 1024

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +([1-5]\d\d)(?:[ \t][^\r\n]*)?\r?\Z")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;.*)?\r?\Z", re.DOTALL)
_LINE_END = b"\r\n"
_HEAD_END = re.compile(rb"\r?\n\r?\n")

_IDLE, _AGE = 15.0, 300.0
"""Seconds: idle time of a connection, and its age, since DNS may change."""

_KEPT_EACH = 8
"""Connections kept per server."""

_ADDRESSES = 4
"""Addresses tried per name."""

Addresses = Callable[[], Awaitable[Sequence[str]]]

BrokenOff = Literal["reset", "bad_answer"]


class NoResponse(Exception):
    """No final status line."""

    def __init__(self, reason: BrokenOff) -> None:
        super().__init__(reason)
        self.reason: BrokenOff = reason


class ResponseReader:
    """Incremental parser of one response. Never raises.

    The status line decides; of the rest a limited part is read.
    """

    def __init__(self, shown: int) -> None:
        """``shown`` is the number of body bytes to keep."""
        self._shown = shown
        self._data = bytearray()
        self._at = 0
        self._read = 0
        self._reads = 0
        self._pieces = 0
        self._body = bytearray()
        self._body_read = 0
        self._is_shown = True
        self._framing: Literal["head", "length", "chunks", "trailer", "end"] = "head"
        self._left = 0
        self._keeps = False
        self.status: int | None = None
        self.failure: BrokenOff = "bad_answer"
        self.is_done = False
        self.is_reusable = False

    @property
    def body(self) -> bytes:
        """The start of the body; empty if compressed."""
        return bytes(self._body[: self._shown]) if self._is_shown else b""

    def feed(self, data: bytes) -> None:
        if self.is_done:
            self.is_reusable = False
            return
        self._reads += 1
        self._data += data
        if self._framing == "head":
            self._read_heads()
        if self._framing != "head" and not self.is_done:
            self._read_body()
        if self._reads >= READS and not self.is_done:
            self._stop()

    def end(self) -> None:
        if not self.is_done:
            self.failure = "reset"
        self.is_done = True
        self.is_reusable = False

    def _stop(self) -> None:
        self.is_done = True

    def _finish(self) -> None:
        """Surplus bytes make the connection unusable."""
        self.is_done = True
        self.is_reusable = self._keeps and self._at == len(self._data)

    def _read_heads(self) -> None:
        while self._framing == "head" and not self.is_done:
            while self._at < len(self._data) and self._data[self._at] in _LINE_END:
                self._at += 1
            line_end = self._data.find(b"\n", self._at, self._at + HEAD)
            status = None
            if line_end >= 0:
                found = _STATUS.match(bytes(self._data[self._at : line_end]))
                status = int(found[1]) if found else None
                if status is None or status == 101:
                    # Not HTTP, or an unrequested protocol switch.
                    self._stop()
                    return
                if status >= 200:
                    self.status = status
            end = None if line_end < 0 else _HEAD_END.search(self._data, max(line_end - 1, self._read - 3))
            self._read = len(self._data)
            if end is None:
                if len(self._data) > HEAD:
                    self._stop()
                return
            is_new = bytes(self._data[self._at : self._at + 8]) == b"HTTP/1.1"
            head, self._at = bytes(self._data[line_end : end.start()]), end.end()
            if status is not None and status >= 200:
                self._keeps = is_new
                self._begin_body(status, head)
                return
            self._pieces += 1
            self._read = self._at
            if self._pieces >= PIECES or self._at > HEAD:
                self._stop()

    def _begin_body(self, status: int, head: bytes) -> None:
        fields: dict[bytes, set[bytes]] = defaultdict(set)
        for line in head.split(b"\n"):
            name, colon, value = line.partition(b":")
            if colon:
                fields[name.strip().lower()].add(value.strip().lower())
        length, transfer = fields[b"content-length"], fields[b"transfer-encoding"]
        # A small compressed response could expand to a very large one.
        coded = (fields[b"content-encoding"] | transfer) - {b"", b"identity", b"chunked"}
        self._is_shown = not coded
        if any(b"close" in value for value in fields[b"connection"]) or (length and transfer):
            self._keeps = False
        if status in {204, 304}:
            self._finish()
        elif transfer:
            self._framing = "chunks" if transfer == {b"chunked"} else "end"
        elif length:
            (text, *others) = length
            if others or not (text.isdigit() and len(text) <= 18):
                self._stop()
                return
            self._framing, self._left = "length", int(text)
            if not self._left:
                self._finish()
        else:
            self._framing = "end"
        self._keeps = self._keeps and self._framing != "end"

    def _read_body(self) -> None:
        if self._framing == "length":
            self._take(min(self._left, len(self._data) - self._at))
            if not self._left:
                self._finish()
        elif self._framing == "end":
            self._take(len(self._data) - self._at)
        else:
            self._read_chunks()
        if self._body_read > BODY and not self.is_done:
            self._stop()
        del self._data[: self._at]
        self._at = 0

    def _take(self, count: int) -> None:
        if (room := self._shown - len(self._body)) > 0:
            self._body += self._data[self._at : self._at + min(count, room)]
        self._at += count
        self._left -= count
        self._body_read += count

    def _read_chunks(self) -> None:
        while not self.is_done and self._body_read <= BODY and self._is_past_chunk():
            line = self._line()
            if line is None:
                return
            self._pieces += 1
            if self._framing == "trailer":
                if line in {b"", b"\r"}:
                    self._finish()
            elif (found := _CHUNK.match(line)) is None:
                self._stop()
            elif size := int(found[1], 16):
                self._left = size + len(_LINE_END)
            else:
                self._framing = "trailer"
            if self._pieces >= PIECES and not self.is_done:
                self._stop()

    def _is_past_chunk(self) -> bool:
        if self._left > len(_LINE_END):
            self._take(min(self._left - len(_LINE_END), len(self._data) - self._at))
        if not self._left:
            return True
        if self._left > len(_LINE_END) or len(self._data) - self._at < len(_LINE_END):
            return False
        if bytes(self._data[self._at : self._at + len(_LINE_END)]) != _LINE_END:
            self._stop()
            return False
        self._at += len(_LINE_END)
        self._left = 0
        return True

    def _line(self) -> bytes | None:
        end = self._data.find(b"\n", self._at, self._at + _LONGEST_LINE)
        if end < 0:
            if len(self._data) - self._at >= _LONGEST_LINE:
                self._stop()
            return None
        line = bytes(self._data[self._at : end])
        self._body_read += end + 1 - self._at
        self._at = end + 1
        return line


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.made_at = 0.0
        self._reader: ResponseReader | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._expires: asyncio.TimerHandle | None = None
        self._remove: Callable[[_Connection], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            # Unsolicited bytes could be mistaken for the next response.
            self.abort()
            return
        self._reader.feed(data)
        if self._reader.is_done:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._reader is not None:
            self._reader.end()
        if self._remove is not None:
            self._remove(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def send(self, request: bytes, reader: ResponseReader) -> None:
        self._reader = reader
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            if self.transport is None or self.transport.is_closing():
                reader.end()
                return
            self.transport.write(request)
            await self._waiting
        finally:
            self._reader = self._waiting = None

    def release(self, on_close: "Callable[[_Connection], None]") -> None:
        """Keep the connection for reuse until ``_IDLE``."""
        self._remove = on_close
        self._expires = asyncio.get_running_loop().call_later(_IDLE, self.abort)

    def resume(self) -> bool:
        self._remove = None
        if self._expires is not None:
            self._expires.cancel()
        return self.is_open and time.monotonic() - self.made_at < _AGE


@dataclass(frozen=True)
class Destination:
    """``host`` is the TLS server name."""

    host: str
    port: int
    is_tls: bool


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the operating system's certificates."""
    context = wassima.create_default_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class OutboundClient:
    """A pool of connections for one address policy."""

    def __init__(self, *, connections: int, connect_timeout: float = 4.0) -> None:
        """``connections`` limits idle ones; ``connect_timeout`` is seconds per address."""
        self._most_kept = connections
        self._connect_timeout = connect_timeout
        self._kept: dict[Destination, list[_Connection]] = {}
        self._count = 0
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        for connection in [each for kept in self._kept.values() for each in kept]:
            connection.resume()
            connection.abort()
        self._kept.clear()
        self._count = 0

    async def post(
        self, destination: Destination, addresses: Addresses, request: bytes, reader: ResponseReader
    ) -> None:
        """Send on an idle connection, or connect to the first reachable address.

        The caller sets the timeout. Raises NoResponse and OSError.
        """
        connection = self._take(destination)
        if connection is None:
            connection = await self._connect(destination, await addresses())
        try:
            await connection.send(request, reader)
        finally:
            self._release(destination, connection, reader)
        if reader.status is None:
            raise NoResponse(reader.failure)

    def _take(self, destination: Destination) -> _Connection | None:
        while kept := self._kept.get(destination):
            connection = kept[-1]
            self._remove(destination, connection)
            if connection.resume():
                return connection
            connection.abort()
        return None

    def _remove(self, destination: Destination, connection: _Connection) -> None:
        kept = self._kept[destination]
        kept.remove(connection)
        self._count -= 1
        if not kept:
            del self._kept[destination]

    async def _connect(self, destination: Destination, addresses: Sequence[str]) -> _Connection:
        # Literal addresses: the event loop performs no DNS lookup.
        loop = asyncio.get_running_loop()
        if destination.is_tls and self._tls is None:
            self._tls = tls_context()
        failure: OSError = ConnectionError("no address")
        for address in addresses[:_ADDRESSES]:
            try:
                async with asyncio.timeout(self._connect_timeout):
                    _, connection = await loop.create_connection(
                        _Connection,
                        address,
                        destination.port,
                        ssl=self._tls if destination.is_tls else None,
                        server_hostname=destination.host if destination.is_tls else None,
                    )
            except OSError as problem:
                failure = problem
            else:
                return connection
        raise failure

    def _release(self, destination: Destination, connection: _Connection, reader: ResponseReader) -> None:
        has_room = len(self._kept.get(destination, ())) < _KEPT_EACH and self._count < self._most_kept
        if reader.is_reusable and connection.is_open and has_room:
            self._kept.setdefault(destination, []).append(connection)
            self._count += 1
            connection.release(partial(self._remove, destination))
        else:
            connection.abort()


def request_bytes(host: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Raises ValueError for a header with a line break."""
    fields = {"Host": host, "Accept": "*/*", "Accept-Encoding": "identity", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header must not contain a line break")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
