"""A merchant's webhook server for tests."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True)
class Received:
    """One POST. Header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return msgspec.json.decode(self.body, type=dict[str, Any])


@dataclass
class Receiver:
    """Received requests, and the answer: a status, or a function of the request and its number; and the body."""

    url: str = ""
    status: int = 200
    delay: float = 0.0
    answer: Callable[[Received, int], int] | None = None
    says: Callable[[Received], bytes] | None = None
    received: list[Received] = field(default_factory=list[Received])
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, kind: str) -> list[Received]:
        return [one for one in self.received if one.headers.get("x-event-type") == kind]

    async def wait_for(self, count: int, *, kind: str | None = None, patience: float = 15.0) -> list[Received]:
        """Raises TimeoutError after ``patience`` seconds."""

        def found() -> list[Received]:
            return self.received if kind is None else self.of(kind)

        async with asyncio.timeout(patience), self._arrived:
            await self._arrived.wait_for(lambda: len(found()) >= count)
        return found()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
                headers = {name.strip().lower(): value.strip() for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                one = Received(head[0].split(" ")[1], headers, body)
                async with self._arrived:
                    self.received.append(one)
                    self._arrived.notify_all()
                status = self.status if self.answer is None else self.answer(one, len(self.received))
                if self.delay:
                    await asyncio.sleep(self.delay)
                content = b"ok" if self.says is None else self.says(one)
                writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiving() -> AsyncGenerator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/webhooks"
    try:
        yield receiver
    finally:
        server.close()
