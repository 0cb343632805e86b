"""A cheap HTTP/1.1 client on kept connections, so that the load and not its generator is measured."""

import asyncio
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

import msgspec

_PATIENCE = 30.0
"""Timeout of an answer in seconds."""


_KEPT = 10.0
"""Seconds that an idle connection is kept, as most clients do."""


@dataclass(frozen=True)
class Answer:
    """An answer: status 0 for none. ``seconds`` is its duration."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        """Return the decoded body, or None for one that is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None


_Idle = tuple[float, asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """Calls the APIs at these ports in turn; one that refuses the connection is skipped."""

    def __init__(self, ports: list[int], api_key: str) -> None:
        self._ports = ports
        self._key = api_key.encode()
        self._turn = 0
        self._idle: dict[int, deque[_Idle]] = defaultdict(deque)

    async def call(self, method: str, path: str, body: Any = None, key: str = "") -> Answer:
        """Send one request; every error is an answer with status 0."""
        content = b"" if body is None else msgspec.json.encode(body)
        lines = [
            f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(content)}\r\nX-API-Key: ".encode(),
            self._key,
            b"\r\nContent-Type: application/json\r\n" if body is not None else b"\r\n",
            f"Idempotency-Key: {key}\r\n\r\n".encode() if key else b"\r\n",
            content,
        ]
        began = time.perf_counter()
        try:
            async with asyncio.timeout(_PATIENCE):
                status, headers, answer = await self._exchange(b"".join(lines))
        except (OSError, EOFError, TimeoutError, ValueError):
            status, headers, answer = 0, {}, b""
        return Answer(status, headers, answer, time.perf_counter() - began)

    async def _exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        port, reader, writer = await self._connect()
        is_kept = False
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            first, *rest = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            is_kept = headers.get("connection") != "close"
            return int(first.split(" ", 2)[1]), headers, body
        finally:
            if is_kept:
                self._keep(port, reader, writer)
            else:
                writer.close()

    def _keep(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now, idle = time.monotonic(), self._idle[port]
        idle.append((now, reader, writer))
        # The most recently used connection comes first; the oldest ones remain from a busy moment.
        while idle[0][0] < now - _KEPT:
            idle.popleft()[2].close()

    async def _connect(self) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        problem: OSError | None = None
        for _ in self._ports:
            self._turn += 1
            port = self._ports[self._turn % len(self._ports)]
            idle = self._idle[port]
            while idle:
                _, reader, writer = idle.pop()
                if not reader.at_eof() and not writer.is_closing():
                    return port, reader, writer
                writer.close()
            try:
                return port, *(await asyncio.open_connection("127.0.0.1", port))
            except OSError as refused:
                problem = refused
        raise problem or OSError("no port")

    def close(self) -> None:
        """Close all connections."""
        for idle in self._idle.values():
            for _, _, writer in idle:
                writer.close()
        self._idle.clear()
