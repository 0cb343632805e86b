"""Protects a gateway mounted in a uvicorn host: a request with Upgrade is the last one of its connection."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from litestar import Litestar, asgi

from bench.attack import smuggling
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.http.upgrade import CloseAfterUpgrade
from mpesa_gateway.testing.serving import eventually, gateway_values, listening
from tests.asgi import send_request

PATIENCE = 10.0
UPGRADES = [
    ("Connection: Upgrade", "Upgrade: h2c"),
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"),
    ("Connection: Upgrade", "Upgrade: websocket"),
    ("Connection: Upgrade", "Upgrade: TLS/1.0"),
]


class Seen:
    """ASGI middleware that records the requested paths."""

    def __init__(self, app: Any) -> None:
        self.paths: list[str] = []
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self._app(scope, receive, send)


@asynccontextmanager
async def hosted(app: Any, parser: str) -> AsyncGenerator[int]:
    """Serve an application as a host does, with an unchanged uvicorn; yield the port."""
    with listening() as at:
        config = uvicorn.Config(
            app, http=parser, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[at]))

        async def has_started() -> bool:
            return server.started

        try:
            await eventually(has_started)
            yield at.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def sends(port: int, *segments: bytes, sent: asyncio.Event | None = None) -> bytes:
    """Return all bytes until the connection is closed. ``sent`` is set once all segments are sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""

    async def read() -> None:
        nonlocal said
        # A server that closes before it has read everything resets the connection.
        with suppress(ConnectionError):
            while part := await reader.read(65_536):
                said += part

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(PATIENCE):
            for segment in segments:
                with suppress(ConnectionError):
                    writer.write(segment)
                    await writer.drain()
                await asyncio.sleep(0.04)
            if sent is not None:
                sent.set()
            await reading
        return said
    finally:
        reading.cancel()
        writer.close()


class Slow:
    """Answers once the client has sent everything: by then uvicorn has queued all that it parsed as requests."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()

    async def __call__(self, _: Any, __: Any, send: Any) -> None:
        await self.sent.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def attacked(
    parser: str, headers: tuple[str, ...], *more: bytes, is_wrapped: bool = True
) -> tuple[list[str], bytes]:
    """Return the requested paths and the answers for a callback as the body of an upgrade."""
    evil = smuggling.forged()
    slow = Slow()
    seen = Seen(CloseAfterUpgrade(slow) if is_wrapped else slow)
    async with hosted(seen, parser) as port:
        head = smuggling.post(*headers, f"Content-Length: {len(evil)}")
        return seen.paths, await sends(port, head, evil, *more, sent=slow.sent)


@pytest.mark.parametrize("parser", ["httptools", "h11"])
async def test_bytes_after_an_upgrade_never_become_a_request(parser: str) -> None:
    for paths, answers in await asyncio.gather(*(attacked(parser, each) for each in UPGRADES)):
        assert paths == ["/v1/payments"]
        assert answers.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in answers


@pytest.mark.parametrize("parser", ["httptools", "h11"])
async def test_bytes_after_two_lengths_never_become_a_request(parser: str) -> None:
    sent = smuggling.post("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + smuggling.forged()
    slow = Slow()
    seen = Seen(CloseAfterUpgrade(slow))
    async with hosted(seen, parser) as port:
        answers = await sends(port, sent, sent=slow.sent)
    assert seen.paths == ([] if parser == "httptools" else ["/v1/payments"])
    assert answers.count(b"HTTP/1.1 ") == 1


async def test_uvicorn_without_the_middleware_reads_the_body_as_a_request() -> None:
    # The counter-test: once uvicorn reads this as h11 does, the middleware is unnecessary.
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    tries = (attacked("httptools", each, last, is_wrapped=False) for each in UPGRADES)
    for paths, _ in await asyncio.gather(*tries):
        assert smuggling.FORGED in paths


@pytest.mark.parametrize("parser", ["httptools", "h11"])
async def test_mounted_gateway_answers_an_upgrade_once(parser: str, database_url: str, valkey_url: str) -> None:
    values = gateway_values(database_url, valkey_url, worker={"in_process": False})
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        mounted = asgi("/pay", is_mount=True, copy_scope=True)(gateway.asgi)
        seen = Seen(Litestar([mounted]))
        evil = smuggling.forged().replace(b"POST /v1", b"POST /pay/v1")
        async with hosted(seen, parser) as port:
            for headers in UPGRADES:
                for segments in (2, 1):
                    head = smuggling.post(*headers, f"Content-Length: {len(evil)}", path="/pay/v1/payments")
                    answers = await sends(port, *([head, evil] if segments == 2 else [head + evil]))
                    assert answers.count(b"HTTP/1.1 ") == 1
                    assert b"\r\nconnection: close\r\n" in answers
            connect = smuggling.post(f"Content-Length: {len(evil)}", method="CONNECT", path="/pay/v1/payments")
            assert (await sends(port, connect, evil)).count(b"HTTP/1.1 ") <= 1
        assert not [path for path in seen.paths if "/cb/" in path]
        assert await gateway.db.fetchval("SELECT count(*) FROM refused_callback") == 0


async def test_body_lost_by_the_server_raises() -> None:
    kept = ((b"connection", b"keep-alive"), (b"content-type", b"text/plain"))

    async def reads(_: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": kept})
        await send({"type": "http.response.body", "body": message["body"]})

    upgrade = ((b"connection", b"upgrade"), (b"upgrade", b"h2c"))
    app = CloseAfterUpgrade(reads)
    whole = await send_request(app, "POST", b"/", (*upgrade, (b"content-length", b"2")), [b"{}"])
    assert (whole.body, whole.header(b"connection")) == (b"{}", b"close")
    assert (await send_request(app, "POST", b"/", (*upgrade, (b"content-length", b"0")))).status == 200
    assert (await send_request(app, "POST", b"/", ((b"content-length", b"2"),))).header(b"connection") == b"keep-alive"
    with pytest.raises(Exception, match="without `Upgrade`"):
        await send_request(app, "POST", b"/", (*upgrade, (b"content-length", b"2")))
