"""A reverse proxy for two APIs that sends new requests to ready ones only."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Balancer:
    """HTTP/1.1 on a free port. It probes on a new connection each time, and repeats no request by itself."""

    ports: list[int]
    every: float = 0.1
    """Seconds between two probes of /health/ready."""
    lost: list[str] = field(default_factory=list[str])
    """Requests forwarded without an answer: expected to be empty."""
    ready: set[int] = field(default_factory=set[int])
    port: int = 0
    _turn: int = 0
    _server: asyncio.Server | None = None
    _tasks: set["asyncio.Task[Any]"] = field(default_factory=set["asyncio.Task[Any]"])

    @property
    def base(self) -> str:
        """Return its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, and start to probe the APIs."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        for port in self.ports:
            task = asyncio.create_task(self._look_after(port))
            self._tasks.add(task)

    async def stop(self) -> None:
        """Close all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_after(self, port: int) -> None:
        request = b"GET /health/ready HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"
        while True:
            is_ready = False
            with suppress(OSError, ValueError, IndexError, TimeoutError):
                async with asyncio.timeout(5):
                    is_ready = (await self._exchange(port, request)).split(b" ", 2)[1] == b"200"
            (self.ready.add if is_ready else self.ready.discard)(port)
            await asyncio.sleep(self.every)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                answer = await self._pass_on(head, body)
                if not answer:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _pass_on(self, head: bytes, body: bytes) -> bytes:
        """Return the answer of a ready API, or an empty text."""
        lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        lines = [line for line in lines if not line.lower().startswith(b"connection:")]
        request = b"\r\n".join([*lines, b"Connection: close", b"", body])
        ready = sorted(self.ready)
        if not ready:
            return b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        self._turn += 1
        try:
            answer = await self._exchange(ready[self._turn % len(ready)], request)
        except OSError as problem:
            answer, reason = b"", type(problem).__name__
        else:
            reason = "no answer"
        if not answer:
            self.lost.append(f"{lines[0].decode('latin-1')}: {reason}")
            return b""
        # The connection to the client stays open.
        start, _, rest = answer.partition(b"\r\n\r\n")
        kept = [line for line in start.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        return b"\r\n".join(kept) + b"\r\n\r\n" + rest

    @staticmethod
    async def _exchange(port: int, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0
