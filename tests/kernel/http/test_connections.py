"""Protects connections of a serving process: one interpretation of every byte, and room for the next client."""

import asyncio
import resource
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from bench.attack import smuggling
from mpesa_gateway.commands.serve import connections_within_open_files
from mpesa_gateway.config import HttpConfig
from mpesa_gateway.http.load_shedding import CROWDED
from mpesa_gateway.http.request_head import InvalidRequest, read_chunk_size, read_head
from mpesa_gateway.testing.serving import eventually, listening, serving

PATIENCE = 10.0


@dataclass
class RecordingApp:
    """An application that records its requests. It answers ``/hold`` once ``released`` is set."""

    seen: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    crowded: list[bool] = field(default_factory=list[bool])
    released: asyncio.Event = field(default_factory=asyncio.Event)
    lost: int = 0
    in_progress: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.in_progress += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.in_progress -= 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more and scope["path"] != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.lost += 1
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.seen.append({"path": scope["path"], "headers": headers, "body": body.decode("latin-1")})
        self.crowded.append(bool(scope.get(CROWDED)))
        if scope["path"] == "/hold":
            await self.released.wait()
        answer = b"x" * (2_000_000 if scope["path"] == "/large" else 2)
        length = str(len(answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": answer})

    @property
    def paths(self) -> list[str]:
        return [one["path"] for one in self.seen]


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Site:
    """An application on a port, and the connections to it."""

    app: RecordingApp
    port: int
    opened: list[Streams] = field(default_factory=list[Streams])

    async def connect(self) -> Streams:
        """Open a connection that is closed at the end of the test."""
        streams = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(streams)
        return streams


@asynccontextmanager
async def served(connections: int | None = None, bounds: HttpConfig | None = None) -> AsyncGenerator[Site]:
    with listening() as at:
        app = RecordingApp()
        async with serving(app, at, bounds, limit_concurrency=connections, lifespan="off"):
            found = Site(app, at.getsockname()[1])
            try:
                yield found
            finally:
                app.released.set()
                for _, writer in found.opened:
                    writer.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def status(streams: Streams) -> int:
    """Return the status of the next answer, whose body is two bytes or JSON."""
    reader, _ = streams
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
    return int(head.split(b" ")[1])


async def asks(streams: Streams, path: str) -> int:
    streams[1].write(get(path))
    return await status(streams)


async def is_closed(streams: Streams) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            return await streams[0].read() == b""
    except ConnectionError:
        return True


# -- one interpretation of every byte -----------------------------------------------


async def attacked(case: smuggling.Case) -> str | None:
    """Return the problem of a case, None if it is handled safely."""
    async with served() as site:
        reader, writer = await site.connect()
        for number, segment in enumerate(case.segments):
            if number:
                await asyncio.sleep(0.05)
            writer.write(segment)
        if case.must:
            await eventually(lambda: _has(site.app, len(case.allowed)))
        try:
            # Read until the server closes, or has been silent for a while.
            while await asyncio.wait_for(reader.read(65_536), 0.25):
                pass
        except (TimeoutError, ConnectionError):
            pass
        return smuggling.judge(case, site.app.seen)


async def test_smuggled_requests_reach_nothing_and_honest_ones_arrive_whole() -> None:
    at_once = asyncio.Semaphore(20)

    async def problem_of(case: smuggling.Case) -> tuple[str, str | None]:
        async with at_once:
            return case.name, await attacked(case)

    chosen = [case for case in smuggling.cases() if not case.routes]
    assert len(chosen) > 150
    found = await asyncio.gather(*(problem_of(case) for case in chosen))
    assert [(name, problem) for name, problem in found if problem is not None] == []


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.2, h2c", "H2C"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_ignored_upgrade_delivers_its_body_and_keeps_the_connection(upgrade: str, framing: str) -> None:
    body = get("/forged")
    how = f"Content-Length: {len(body)}" if framing == "length" else "Transfer-Encoding: chunked"
    sent = body if framing == "length" else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = smuggling.post("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAMA", how)
    for pieces in ([head + sent], [head, sent], [head + sent[:7], sent[7:]]):
        async with served() as site:
            streams = await site.connect()
            for piece in pieces:
                streams[1].write(piece)
                await streams[1].drain()
                await asyncio.sleep(0.03)
            assert await status(streams) == 200
            assert await asks(streams, "/after") == 200
            assert site.app.paths == ["/v1/payments", "/after"]
            assert site.app.seen[0]["body"].encode() == body
            assert not {"upgrade", "http2-settings", "connection"} & {name for name, _ in site.app.seen[0]["headers"]}


async def test_body_cut_at_any_point_arrives_whole() -> None:
    body = bytes(range(256)) * 40
    sent = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:300], body[300:]))
    sent += b"0\r\nX-Trailer: 1\r\n\r\n"
    request = smuggling.post("Transfer-Encoding: chunked", path="/chunks") + sent
    request += smuggling.post(f"Content-Length: {len(body)}", path="/length") + body + get("/after")
    async with served() as site:
        streams = await site.connect()
        for size in (1, 13, 4096):
            for start in range(0, len(request) if size > 1 else 400, size):
                streams[1].write(request[start : start + size])
                await streams[1].drain()
            if size == 1:
                streams[1].write(request[400:])
            assert [await status(streams) for _ in range(3)] == [200] * 3
        assert site.app.paths == ["/chunks", "/length", "/after"] * 3
        assert {one["body"].encode("latin-1") for one in site.app.seen if one["path"] != "/after"} == {body}


async def test_pipelined_request_waits_for_the_answer_before_it() -> None:
    async with served() as site:
        streams = await site.connect()
        streams[1].write(get("/hold") + get("/second") + get("/third"))
        await eventually(lambda: _has(site.app, 1))
        await asyncio.sleep(0.05)
        assert site.app.paths == ["/hold"]
        site.app.released.set()
        assert [await status(streams) for _ in range(3)] == [200] * 3
        assert site.app.paths == ["/hold", "/second", "/third"]


async def test_large_pipeline_is_not_read_during_a_request() -> None:
    async with served() as site:
        streams = await site.connect()
        streams[1].write(get("/hold"))
        await eventually(lambda: _has(site.app, 1))
        # More than the buffers of the socket and the guard hold: the client cannot send it.
        streams[1].write(get("/more") * 600_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await streams[1].drain()
        site.app.released.set()
        assert [await status(streams) for _ in range(50)] == [200] * 50
        streams[1].transport.abort()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 65_536, 431),
        (b"no http\r\n\r\n", 400),
        (smuggling.post("Transfer-Encoding: chunked") + b"ZZ\r\n", 400),
    ],
)
async def test_little_is_read_after_a_refusal(sent: bytes, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discarded bytes cost processor time: without a bound, a client could send for the whole linger time."""
    monkeypatch.setattr("mpesa_gateway.http.protocol._LINGER", 1.0)
    async with served() as site:
        reader, writer = await site.connect()
        writer.write(sent)
        assert await status((reader, writer)) == expected
        writer.write(b"x" * 64_000_000)
        unsent = 64_000_000
        async with asyncio.timeout(PATIENCE):
            while not writer.transport.is_closing():
                unsent = writer.transport.get_write_buffer_size()
                await asyncio.sleep(0.01)
        assert unsent > 48_000_000
        assert await is_closed((reader, writer))


async def test_early_answer_leaves_its_body_out_of_the_next_request() -> None:
    body = get("/forged") * 3
    async with served() as site:
        streams = await site.connect()
        streams[1].write(smuggling.post(f"Content-Length: {len(body)}", path="/early"))
        assert await status(streams) == 200
        streams[1].write(body)
        assert await asks(streams, "/after") == 200
        assert site.app.paths == ["/early", "/after"]


async def test_bytes_after_a_closing_request_are_not_read() -> None:
    for last in ("Connection: close", "Connection: Upgrade, close", "Connection: x,CLOSE"):
        async with served() as site:
            streams = await site.connect()
            streams[1].write(smuggling.post(last, "Content-Length: 0", path="/last") + get("/forged"))
            assert await status(streams) == 200
            assert await is_closed(streams)
            assert site.app.paths == ["/last"]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"GET http://evil.example/v1/a?b=c HTTP/1.1", b"/v1/a?b=c"),
        (b"GET https://[::1]:8000 HTTP/1.1", b"/"),
        (b"OPTIONS * HTTP/1.1", b"*"),
    ],
)
def test_read_head_writes_one_form(line: bytes, path: bytes) -> None:
    head = read_head(line + b"\r\nHOST:  x \r\nUpgrade: h2c\r\nConnection: Upgrade\r\nX-A:\tb\t", 1000)
    assert head.written == line.split(b" ")[0] + b" " + path + b" HTTP/1.1\r\nhost: x\r\nx-a: b\r\n\r\n"
    assert (head.length, head.is_last) == (0, False)


@pytest.mark.parametrize(
    "line", [b"GET http://e v/ HTTP/1.1", b"GET ftp://x/ HTTP/1.1", b"GET x HTTP/1.1", b"GET http:///x HTTP/1.1", b""]
)
def test_read_head_of_an_unknown_target_form_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_head(line + b"\r\nHost: x", 1000)


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "content-length: 0"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 5"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: gzip, chunked"],
    ],
)
def test_read_head_of_a_body_with_two_lengths_is_refused(headers: list[str]) -> None:
    """It is rejected here, independent of uvicorn's parser."""
    with pytest.raises(InvalidRequest):
        read_head("\r\n".join(["POST / HTTP/1.1", "Host: x", *headers]).encode(), 1000)


def test_read_chunk_size_accepts_one_form() -> None:
    assert [read_chunk_size(line) for line in (b"0", b"a", b"0F;x=y", b"10 ; q", b"000000000005")] == [0, 10, 15, 16, 5]
    for line in (b"", b"-1", b"+1", b"0x1", b" 1", b"1_0", b"1;\x00", b"1\n", b"g", b"1" * 13, b"1;" + b"x" * 2000):
        with pytest.raises(InvalidRequest):
            read_chunk_size(line)


# -- room for the next client -------------------------------------------------------


async def _has(app: RecordingApp, count: int) -> bool:
    return len(app.seen) >= count


async def test_full_server_closes_the_longest_silent_connection() -> None:
    async with served(connections=3) as site:
        silent = await site.connect()
        kept = await site.connect()
        assert await asks(kept, "/kept") == 200
        half = await site.connect()
        half[1].write(b"GET /half HTTP/1.1\r\n")
        await half[1].drain()
        # They are closed in order: connections without a request first, the longest silent first.
        for expected in (silent, half, kept):
            new = await site.connect()
            assert await asks(new, "/new") == 200
            assert await is_closed(expected)
        assert site.app.crowded == [False] * 4


async def test_two_thousand_idle_connections_refuse_no_call() -> None:
    async with served(connections=100) as site:
        honest = await site.connect()
        for number in range(2000):
            await site.connect()
            if number % 20 == 0:
                assert await asks(honest, "/honest") == 200
        assert await asks(await site.connect(), "/another") == 200
        assert site.app.crowded == [False] * 101


async def test_full_server_closes_a_half_body_and_a_client_that_reads_nothing() -> None:
    async with served(connections=2) as site:
        body = await site.connect()
        body[1].write(smuggling.post("Content-Length: 100", path="/body") + b"{")
        deaf = await site.connect()
        deaf[1].write(get("/large") * 3)
        await eventually(lambda: _has(site.app, 1))
        await asyncio.sleep(0.05)
        first = await site.connect()
        assert await asks(first, "/first") == 200
        assert await is_closed(body)
        await eventually(lambda: _lost(site.app))
        first[1].write(get("/hold"))
        await eventually(lambda: _has(site.app, 3))
        second = await site.connect()
        assert await asks(second, "/second") == 200
        deaf[1].write(b"\r\n")
        assert "/second" in site.app.paths


async def test_client_that_reads_nothing_has_one_request_in_progress() -> None:
    async with served() as site:
        streams = await site.connect()
        streams[1].transport.pause_reading()  # type: ignore[attr-defined]
        streams[1].write(get("/large") * 20)
        await eventually(lambda: _has(site.app, 1))
        # By the answers to another client, all requests that the first may pass on have been passed on.
        other = await site.connect()
        for _ in range(20):
            assert await asks(other, "/second") == 200
        # The operating system buffers an answer or two; none waits in the application for the client.
        assert (site.app.paths.count("/large") < 10, site.app.in_progress) == (True, 0)
        streams[1].transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            await streams[0].readuntil(b"\r\n\r\n")
            await streams[0].readexactly(2_000_000)
        assert site.app.paths.count("/large") == 20


async def _lost(app: RecordingApp) -> bool:
    return app.lost > 0


async def test_full_server_never_closes_a_request_in_progress() -> None:
    async with served(connections=4) as site:
        busy = [await site.connect() for _ in range(4)]
        for streams in busy:
            streams[1].write(get("/hold"))
        await eventually(lambda: _has(site.app, 4))
        # A quarter more is admitted and marked: callbacks may be among them.
        fifth = await site.connect()
        assert await asks(fifth, "/fifth") == 200
        assert site.app.crowded == [False] * 4 + [True]
        fifth[1].write(get("/hold"))
        await eventually(lambda: _has(site.app, 6))
        assert await is_closed(await site.connect())
        site.app.released.set()
        assert [await status(streams) for streams in (*busy, fifth)] == [200] * 5


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 4096, 1650, 1000),
        (1024, resource.RLIM_INFINITY, 1650, 1000),
        (1024, 1024, 1024, 499),
        (256, 256, 256, 1),
        (65_536, 65_536, 65_536, 1000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000),
    ],
)
def test_connections_within_open_files_raises_the_limit(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int, connections: int
) -> None:
    limits = [(soft, hard)]

    def get(_: int) -> tuple[int, int]:
        return limits[-1]

    def change(_: int, both: tuple[int, int]) -> None:
        limits.append(both)

    monkeypatch.setattr(resource, "getrlimit", get)
    monkeypatch.setattr(resource, "setrlimit", change)
    assert connections_within_open_files(1000) == connections
    assert limits[-1] == (raised, hard)


async def test_connections_use_the_configured_bounds() -> None:
    bounds = HttpConfig(max_head_bytes=1000, head_timeout=0.2, body_timeout=0.2)
    async with served(bounds=bounds) as site:
        for extra, expected in (("x" * 900, 200), ("x" * 1100, 431)):
            streams = await site.connect()
            streams[1].write(f"GET / HTTP/1.1\r\nHost: x\r\nX-A: {extra}\r\n\r\n".encode())
            assert await status(streams) == expected
        slow = await site.connect()
        slow[1].write(b"GET /slow HTTP/1.1\r\n")
        assert await status(slow) == 408
        assert await is_closed(slow)
        assert await is_closed(await site.connect())


def test_connections_within_open_files_without_permission_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, __: tuple[int, int]) -> None:
        raise PermissionError

    def get(_: int) -> tuple[int, int]:
        return (1024, 4096)

    monkeypatch.setattr(resource, "getrlimit", get)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert connections_within_open_files(1000) == 499


async def test_log_of_many_refusals_is_one_line_a_second() -> None:
    with capture_logs() as lines:
        async with served() as site:
            for _ in range(50):
                streams = await site.connect()
                streams[1].write(b"nonsense\r\n\r\n")
                assert await status(streams) == 400
    refused = [line for line in lines if line["event"] == "request_refused"]
    assert 1 <= len(refused) <= 10
    assert dict(refused[0]) | {"request_id": ""} == {
        "event": "request_refused",
        "log_level": "warning",
        "status": 400,
        "code": "VALIDATION_ERROR",
        "request_id": "",
        "not_logged": 0,
    }


async def test_application_that_fails_is_answered_and_its_connection_closed() -> None:
    async def fails(_: Any, __: Any, ___: Any) -> None:
        raise RuntimeError("a failure")

    with listening() as at:
        async with serving(fails, at, lifespan="off"):
            streams = await asyncio.open_connection("127.0.0.1", at.getsockname()[1])
            assert await asks(streams, "/") == 500
            assert await is_closed(streams)
            streams[1].close()
