"""Calls other servers over HTTP/1.1, on connections that are kept, and says for certain whether anything was sent."""

import asyncio
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools
import wassima

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to the addresses to connect to, as text. Raises OSError."""

Fault = str
"""Why there is no answer: dns, connect, tls, too_slow, reset or bad_answer."""

_DECODERS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class NoAnswer(Exception):
    """No answer came. ``was_sent`` is False only when not a byte of the request has left."""

    def __init__(self, fault: Fault, *, was_sent: bool, cause: BaseException | None = None) -> None:
        super().__init__(fault)
        self.fault = fault
        self.was_sent = was_sent
        self.cause = cause


@dataclass(frozen=True)
class Response:
    """What the other side said. ``body`` is cut off where more came than was wanted."""

    status: int
    body: bytes


@dataclass(frozen=True)
class _Origin:
    scheme: str
    host: str
    port: int


class Outbound:
    """Kept connections, by where they lead. Follows no redirect, keeps no cookie, uses no proxy of the environment."""

    def __init__(
        self,
        resolve: Resolve,
        *,
        connect_timeout: float,
        most_kept: int = 200,
        kept_for: float = 20.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """``connect_timeout`` and ``kept_for``, the time that an unused connection stays open, are in seconds.

        ``context`` says which certificates are believed: those that the system believes, without one.
        """
        self._resolve = resolve
        self._connect_timeout = connect_timeout
        self._most_kept = most_kept
        self._kept_for = kept_for
        self._context = context
        self._kept: dict[_Origin, list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._kept_count = 0

    async def close(self) -> None:
        """Hang up everywhere."""
        for connection in list(self._open):
            connection.hang_up()
        self._kept.clear()
        self._kept_count = 0

    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"", most: int
    ) -> Response:
        """One request and its answer, of whose body at most ``most`` bytes are read. Raises NoAnswer.

        Bound the whole of it with ``asyncio.timeout``: a cancelled exchange hangs up.
        """
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        origin = _Origin(parts.scheme, parts.hostname or "", parts.port or (443 if is_tls else 80))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = _written(method, target, parts.netloc.rpartition("@")[2], headers, body)
        connection = self._take(origin) or await self._connect(origin)
        is_kept = False
        try:
            response = await connection.ask(request, most)
            is_kept = connection.is_reusable
        finally:
            if is_kept:
                self._keep(origin, connection)
            else:
                connection.hang_up()
        return response

    def _take(self, origin: _Origin) -> "_Connection | None":
        kept = self._kept.get(origin, [])
        while kept:
            connection = kept.pop()
            self._kept_count -= 1
            if connection.wake():
                return connection
        return None

    def _keep(self, origin: _Origin, connection: "_Connection") -> None:
        if self._kept_count >= self._most_kept:
            connection.hang_up()
            return
        self._kept.setdefault(origin, []).append(connection)
        self._kept_count += 1
        connection.rest(self._kept_for, lambda: self._let_go(origin, connection))

    def _let_go(self, origin: _Origin, connection: "_Connection") -> None:
        kept = self._kept.get(origin, [])
        if connection in kept:
            kept.remove(connection)
            self._kept_count -= 1
            if not kept:
                del self._kept[origin]

    async def _connect(self, origin: _Origin) -> "_Connection":
        """A new connection. Raises NoAnswer: nothing has been sent."""
        loop = asyncio.get_running_loop()
        failed: NoAnswer | None = None
        try:
            async with asyncio.timeout(self._connect_timeout):
                addresses = await self._look_up(origin)
                for address in addresses:
                    try:
                        _, protocol = await loop.create_connection(
                            lambda: _Connection(self._open),
                            address,
                            origin.port,
                            ssl=self._tls() if origin.scheme == "https" else None,
                            server_hostname=origin.host if origin.scheme == "https" else None,
                        )
                    except ssl.SSLError as problem:
                        failed = NoAnswer("tls", was_sent=False, cause=problem)
                    except OSError as problem:
                        failed = NoAnswer("connect", was_sent=False, cause=problem)
                    else:
                        return protocol
        except TimeoutError:
            failed = NoAnswer("too_slow", was_sent=False)
        raise failed or NoAnswer("dns", was_sent=False)

    async def _look_up(self, origin: _Origin) -> list[str]:
        try:
            return await self._resolve(origin.host, origin.port)
        except TimeoutError:
            raise
        except (OSError, UnicodeError) as problem:
            raise NoAnswer("dns", was_sent=False, cause=problem) from None

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = wassima.create_default_ssl_context()
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context


class _Connection(asyncio.Protocol):
    """One connection, with one request under way at most."""

    def __init__(self, opened: "set[_Connection]") -> None:
        self._opened = opened
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._most = 0
        self.is_reusable = False

    # -- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._opened.add(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._answer is None or self._answer.done():
            # An answer that nobody has asked for.
            self.hang_up()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("bad_answer")
        except httptools.HttpParserError as problem:
            self._fail("bad_answer", problem)

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self)
        self._transport = None
        self.is_reusable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._answer is not None and not self._answer.done():
            if exc is None and self._has_begun and not self._has_end:
                # Without a length, the end of the connection is the end of the answer.
                self._answer.set_result(Response(self._status, self._whole()))
            else:
                self._fail("reset", exc)

    # -- what the parser calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._status = 0
        self._encoding = ""
        self._has_begun = self._has_end = False
        self._parts: list[bytes] = []
        self._read = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered in {b"content-length", b"transfer-encoding"}:
            self._has_end = True
        elif lowered == b"content-encoding":
            self._encoding = value.decode("latin-1").strip().lower()

    def on_headers_complete(self) -> None:
        if self._parser is not None:
            self._status = self._parser.get_status_code()
            self._has_begun = self._status >= 200

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._read += len(body)
        if self._read >= self._most and self._answer is not None and not self._answer.done():
            # What is left unread would be taken for the next answer on this connection.
            self._answer.set_result(Response(self._status, self._whole()))

    def on_message_complete(self) -> None:
        if self._status < 200 or self._answer is None or self._answer.done() or self._parser is None:
            return
        try:
            self._answer.set_result(Response(self._status, self._whole()))
        except zlib.error as problem:
            self._fail("bad_answer", problem)
            return
        self.is_reusable = self._parser.should_keep_alive()

    # -- what we call -----------------------------------------------------------------------------------------------

    async def ask(self, request: bytes, most: int) -> Response:
        """Send a request and wait for its answer. Raises NoAnswer."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise NoAnswer("reset", was_sent=False)
        self._most = most
        self.is_reusable = False
        self._has_begun = False
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        transport.write(request)
        return await self._answer

    def rest(self, seconds: float, let_go: Callable[[], None]) -> None:
        """Stay open for a while without being used."""
        self._parser = self._answer = None
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end_rest, let_go)

    def wake(self) -> bool:
        """Be used again; False when the other side has hung up meanwhile."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._transport is not None and not self._transport.is_closing()

    def hang_up(self) -> None:
        """Close, whatever is under way."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _end_rest(self, let_go: Callable[[], None]) -> None:
        let_go()
        self.hang_up()

    def _fail(self, fault: Fault, cause: BaseException | None = None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(fault, was_sent=True, cause=cause))
        self.hang_up()

    def _whole(self) -> bytes:
        body = b"".join(self._parts)
        bits = _DECODERS.get(self._encoding)
        if bits is None:
            return body[: self._most]
        return zlib.decompressobj(bits).decompress(body, self._most)


def _written(method: str, target: str, host: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The request as it goes over the wire. Raises ValueError for a line break where none may be."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break in a request's head")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def system_lookup(host: str, port: int) -> list[str]:
    """The machine's own resolver. Raises OSError."""
    import socket  # noqa: PLC0415

    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
