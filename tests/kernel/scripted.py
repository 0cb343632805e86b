"""An HTTP server on the loopback interface, scripted by the test, with invalid answers too."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class ScriptedRequest:
    """One request as it arrived. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """The requests, and the function that writes each answer to the connection."""

    answer: Callable[[ScriptedRequest, asyncio.StreamWriter], Awaitable[None]]
    base: str = ""
    asked: list[ScriptedRequest] = field(default_factory=list[ScriptedRequest])
    connections: int = 0

    def of(self, path: str) -> list[ScriptedRequest]:
        """Return the requests to this path, without their query strings."""
        return [one for one in self.asked if one.path.partition("?")[0] == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client or the answer ends it."""
        self.connections += 1
        try:
            while not writer.is_closing():
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.partition(":") for line in lines[1:])
                headers = {name.strip().lower(): text.strip() for name, _, text in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                one = ScriptedRequest(lines[0].split(" ")[0], lines[0].split(" ")[1], headers, body)
                self.asked.append(one)
                await self.answer(one, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


def write(writer: asyncio.StreamWriter, status: int, body: bytes = b"", **headers: str) -> None:
    """Write an answer. ``Content_Type="text/html"`` becomes a header of that name."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def write_json(writer: asyncio.StreamWriter, status: int, content: Any) -> None:
    """Write an answer in JSON."""
    write(writer, status, json.dumps(content).encode(), Content_Type="application/json")


def reset(writer: asyncio.StreamWriter) -> None:
    """Abort the connection."""
    writer.transport.abort()


async def drip(writer: asyncio.StreamWriter, status: int, pause: float) -> None:
    """Announce a body and send one byte per ``pause`` seconds, for longer than any timeout."""
    writer.write(f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n".encode())
    for _ in range(10_000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(pause)


def set_proxy_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set this proxy in the environment, for every address."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The library caches the environment; this function does not.
    monkeypatch.setattr("niquests.utils.getproxies", urllib.request.getproxies)


@asynccontextmanager
async def scripted(
    answer: Callable[[ScriptedRequest, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[ScriptedServer]:
    """Yield a server on a free port."""
    script = ScriptedServer(answer)
    busy: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            await script.serve(reader, writer)
        except asyncio.CancelledError:
            # Only the end of this server cancels it, and asyncio would report it as an error.
            writer.transport.abort()
        finally:
            busy.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    script.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
