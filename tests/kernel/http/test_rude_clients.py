"""Protects a serving process from raw connections: refusals in the envelope, bounds of time, nothing kept in memory."""

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from mpesa_gateway.config import HttpConfig
from mpesa_gateway.http.protocol import ServerConfig
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database, empty_keyspace
from tests.kernel.cli.terminal import PATIENCE, Host, address_of

MEBI = 1_048_576


@dataclass(frozen=True)
class Answer:
    """One answer as on the wire. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A connection to the process, open until the test ends."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        self.opened.append(self.socket)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self._read = b""

    def says(self, *parts: bytes) -> "Connection":
        """Send as much as the server accepts."""
        try:
            for part in parts:
                self.socket.sendall(part)
        except OSError:
            pass
        return self

    def drips(self, byte: bytes, pause: float = 0.1) -> None:
        """Send a byte at intervals until an answer or the end of the connection."""
        until = time.monotonic() + PATIENCE
        while not select.select([self.socket], [], [], pause)[0]:
            assert time.monotonic() < until, "no answer in time"
            try:
                self.socket.sendall(byte)
            except OSError:
                return

    def is_let_go(self) -> bool:
        """Return True if the server closes the connection while nothing is read here."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                self.socket.sendall(b"\r\n")
            except OSError:
                return True
            time.sleep(0.2)
        return False

    def hears(self) -> Answer:
        """Return the next answer."""
        head = self._until(lambda read: b"\r\n\r\n" in read)
        rows = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (each.partition(":") for each in rows[1:])}
        status, begun = int(rows[0].split(" ")[1]), len(head.partition(b"\r\n\r\n")[0]) + 4
        size = begun if status < 200 else begun + int(headers.get("content-length", "0"))
        whole = self._until(lambda read: len(read) >= size)
        self._read = whole[size:]
        return Answer(status, headers, whole[begun:size])

    def ends(self) -> bytes:
        """Return the rest until the server closes the connection."""
        rest = self._read
        try:
            while part := self.socket.recv(65_536):
                rest += part
        except ConnectionResetError:
            pass
        return rest

    def _until(self, is_whole: Callable[[bytes], bool]) -> bytes:
        while not is_whole(self._read):
            part = self.socket.recv(65_536)
            assert part, f"the connection ended after {self._read!r}"
            self._read += part
        return self._read


@dataclass(frozen=True)
class Process:
    """A serving process, and an API key."""

    pid: int
    port: int
    key: str

    @property
    def memory(self) -> int:
        """The resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        (resident,) = (each for each in status.splitlines() if each.startswith("VmRSS:"))
        return int(resident.split()[1]) * 1024

    def connection(self) -> Connection:
        """Open a new connection."""
        return Connection(self.port)

    def head(self, request: str, *headers: str) -> bytes:
        """Return a request line with its headers and the API key."""
        rows = [f"{request} HTTP/1.1", "Host: gateway", f"X-API-Key: {self.key}", *headers]
        return "\r\n".join([*rows, "", ""]).encode()

    def serves(self) -> bool:
        """Return True if the process answers another client."""
        answer = self.connection().says(self.head("GET /v1/payments", "Connection: close")).hears()
        assert answer.status == 200, answer
        return True


@pytest.fixture(autouse=True)
def hangs_up() -> Iterator[None]:
    yield
    while Connection.opened:
        Connection.opened.pop().close()


@pytest.fixture(scope="module")
def host(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with empty_database(servers) as database_url:
        host = Host(
            tmp_path_factory.mktemp("rude"),
            {
                "DATABASE__URL": database_url,
                "VALKEY__URL": empty_keyspace(servers),
                "SECURITY__MASTER_KEY": generate(),
                "LIMITS__AUTH_FAILURES": "100000",
                "LIMITS__REQUESTS_PER_SECOND": "100000",
                "LIMITS__BURST": "200000",
                # Other tests cover the bound of concurrent calls.
                "HTTP__WAIT": "30",
                "HTTP__QUEUE": "1000",
                "HTTP__MAX_UNANSWERED": "1000",
                "HTTP__HEAD_TIMEOUT": "1.5",
                "HTTP__BODY_TIMEOUT": "1.5",
                "HTTP__STALL_TIMEOUT": "1.5",
            },
        )
        yield host
        host.stop()


@pytest.fixture(scope="module")
def process(host: Host) -> Process:
    merchant = host.output_of("merchants", "create", "Shop")
    key = host.output_of("apikeys", "create", merchant, "--name", "test")
    started = host.start("serve", "--port", "0")
    return Process(started.pid, int(address_of(started).rpartition(":")[2]), key)


def refuses(answer: Answer, status: int, code: str) -> bool:
    """Return True for a refusal in the envelope that closes the connection."""
    content = json.loads(answer.body)
    assert answer.status == status, answer
    assert set(content) == {"success", "errors", "request_id"}
    assert content["errors"][0]["code"] == code, content
    assert content["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["connection"] == "close"
    return True


POST = "POST /v1/payments"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"

NO_HTTP = {
    "zeros": b"\x00" * 500 + b"\r\n\r\n",
    "noise": bytes(range(256)) * 4,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 500,
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "socks": b"\x05\x01\x00",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "an unknown method": b"FROB / HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown version": b"GET / HTTP/3.7\r\nHost: x\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "nul in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n",
    "a return in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rc\r\n\r\n",
    "nul in the path": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes beyond ASCII in the path": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "a length that is no number": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length beyond all numbers": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "another coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunked and more": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
}


@pytest.mark.parametrize("what", NO_HTTP)
def test_input_that_is_no_http_is_refused_in_the_envelope(process: Process, what: str) -> None:
    connection = process.connection().says(NO_HTTP[what])
    assert refuses(connection.hears(), 400, "VALIDATION_ERROR")
    assert connection.ends() == b""


@pytest.mark.parametrize(
    "chunk", [b"zz\r\n", b"-1\r\n", b"f" * 40 + b"\r\n", b"1\r\nab\r\n", b"5;" + b"\x00" + b"\r\n"]
)
def test_invalid_chunk_ends_the_request_and_the_connection(process: Process, chunk: bytes) -> None:
    connection = process.connection().says(process.head(POST, JSON, CHUNKED, "Idempotency-Key: a"), chunk)
    assert refuses(connection.hears(), 400, "VALIDATION_ERROR")
    assert connection.ends() == b""


ENDLESS = {
    "a path": (b"GET /", b"x" * 65_536),
    "a query": (b"GET /?", b"a=1&" * 16_384),
    "a header's name": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"x" * 65_536),
    "a header's value": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"x" * 65_536),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 8192),
    "empty lines": (b"", b"\r\n" * 32_768),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_head_is_too_large_and_not_kept(process: Process, what: str) -> None:
    start, more = ENDLESS[what]
    assert process.serves()
    before = process.memory
    connections = [process.connection().says(start) for _ in range(20)]
    for _ in range(256):
        for connection in connections:
            connection.says(more)
    for connection in connections:
        assert refuses(connection.hears(), 431, "PAYLOAD_TOO_LARGE")
    # 320 MiB were offered; a busy process reads more at once, and holds some of it for a moment.
    assert process.memory - before < 64 * MEBI
    assert process.serves()


def test_http_1_0_request_needs_no_host(process: Process) -> None:
    answer = process.connection().says(b"GET /health/live HTTP/1.0\r\n\r\n").hears()
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_request_with_too_many_headers_is_refused(process: Process) -> None:
    for count, status in ((10_000, 431), (200, 431), (90, 200)):
        headers = [f"X-{number}: y" for number in range(count)]
        answer = process.connection().says(process.head("GET /v1/payments", *headers, "Connection: close")).hears()
        assert answer.status == status, count


@pytest.mark.parametrize("key", ["right", "wrong"])
def test_endless_body_is_refused_and_not_kept(process: Process, key: str) -> None:
    head = process.head(POST, JSON, CHUNKED, "Idempotency-Key: endless")
    if key == "wrong":
        head = head.replace(process.key.encode(), b"sk_test_" + b"0" * 48)
    assert process.serves()
    before = process.memory
    connections = [process.connection().says(head) for _ in range(10)]
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    for _ in range(128):
        for connection in connections:
            connection.says(chunk)
    for connection in connections:
        answer = connection.hears()
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (
            (413, "PAYLOAD_TOO_LARGE") if key == "right" else (401, "AUTH_INVALID_KEY")
        )
    # 80 MiB were offered.
    assert process.memory - before < 32 * MEBI
    assert process.serves()


def test_body_with_a_huge_length_is_refused_before_it_arrives(process: Process) -> None:
    connection = process.connection().says(
        process.head(POST, JSON, "Content-Length: 9999999999", "Idempotency-Key: huge")
    )
    assert connection.hears().status == 413
    # The connection has an end.
    assert connection.ends() != b"9999999999"


SLOW = {
    "a request line": (b"GET /health", b"x"),
    "headers": (b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: ", b"x"),
    "empty lines": (b"\r\n", b"\r\n"),
}


@pytest.mark.parametrize("what", SLOW)
def test_slow_head_times_out(process: Process, what: str) -> None:
    start, byte = SLOW[what]
    connection = process.connection().says(start)
    connection.drips(byte)
    assert refuses(connection.hears(), 408, "REQUEST_TIMEOUT")
    connection.ends()


def test_slow_head_after_an_answer_times_out(process: Process) -> None:
    connection = process.connection().says(process.head("GET /v1/payments"))
    assert connection.hears().status == 200
    connection.says(b"GET /hea").drips(b"x")
    assert refuses(connection.hears(), 408, "REQUEST_TIMEOUT")
    connection = process.connection().says(process.head("GET /v1/payments"))
    assert connection.hears().status == 200
    connection.drips(b"\r\n")
    assert refuses(connection.hears(), 408, "REQUEST_TIMEOUT")


def test_silent_connection_is_closed(process: Process) -> None:
    assert process.connection().ends() == b""
    assert process.connection().says(b"GET /health/live HTTP/1.1\r\nHo").ends().startswith(b"HTTP/1.1 408 ")


BODIES = {
    "a body": (["Content-Length: 1000"], b"{", b" "),
    "a body that never begins": (["Content-Length: 1000"], b"", b""),
    "chunks": ([CHUNKED], b"1\r\n{\r\n", b"1\r\n \r\n"),
    "the length of a chunk": ([CHUNKED], b"1\r\n{\r\n", b"0"),
    "a promised body": (["Content-Length: 1000", "Expect: 100-continue"], b"", b" "),
}


@pytest.mark.parametrize("what", BODIES)
def test_slow_body_times_out(process: Process, what: str) -> None:
    headers, start, byte = BODIES[what]
    connection = process.connection().says(process.head(POST, JSON, "Idempotency-Key: slow", *headers), start)
    if what == "a promised body":
        assert connection.hears().status == 100
    connection.drips(byte)
    assert refuses(connection.hears(), 408, "REQUEST_TIMEOUT")
    connection.ends()


def test_slow_body_of_an_answered_request_cannot_keep_the_connection(process: Process) -> None:
    dripping: list[tuple[Connection, threading.Thread]] = []
    for request, status in (("POST /v1/nothing", 404), ("GET /health/live", 200), ("POST /v1/payments", 401)):
        connection = process.connection().says(
            f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode()
        )
        assert connection.hears().status == status
        thread = threading.Thread(target=connection.drips, args=(b" ", 0.3))
        thread.start()
        dripping.append((connection, thread))
    for connection, thread in dripping:
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert b"HTTP/1.1 200" not in connection.ends()


def test_client_that_reads_no_answer_is_disconnected(process: Process) -> None:
    connection = Connection(process.port, receive_buffer=4096)
    # Answers of some hundred kilobytes each, none of which is read.
    connection.says(process.head("GET /schema/openapi.json") * 200)
    assert connection.is_let_go()


def test_three_hundred_slow_clients_delay_no_other(process: Process) -> None:
    before = process.memory
    slow = [process.connection().says(b"POST /v1/payments HTTP/1.1\r\nHost: x\r\nX-A: ") for _ in range(150)]
    head = process.head(POST, JSON, "Idempotency-Key: crowd", "Content-Length: 60000")
    slow += [process.connection().says(head, b" " * 30_000) for _ in range(150)]
    assert all(process.serves() for _ in range(20))
    for connection in slow:
        assert connection.ends().startswith(b"HTTP/1.1 408 ")
    assert process.memory - before < 64 * MEBI


def test_pipelined_requests_are_answered_in_order(process: Process) -> None:
    heads = [process.head(f"GET {path}") for path in ("/v1/payments", "/v1/nothing", "/health/live", "/v1/refunds")]
    connection = process.connection().says(b"".join(heads))
    assert [connection.hears().status for _ in heads] == [200, 404, 200, 200]
    body = b'{"amount": "much"}'
    post = process.head(POST, JSON, "Idempotency-Key: a", f"Content-Length: {len(body)}") + body
    connection.says(post * 3 + heads[0])
    assert [connection.hears().status for _ in range(4)] == [422, 422, 422, 200]


def test_requests_before_invalid_bytes_are_answered_first(process: Process) -> None:
    good = process.head("GET /v1/payments")
    connection = process.connection().says(good * 5 + b"nonsense\r\n\r\n" + good)
    assert [connection.hears().status for _ in range(5)] == [200] * 5
    assert refuses(connection.hears(), 400, "VALIDATION_ERROR")
    assert connection.ends() == b""
    connection = process.connection().says(
        good * 2 + process.head(POST, JSON, CHUNKED, "Idempotency-Key: a"), b"zz\r\n"
    )
    assert [connection.hears().status for _ in range(2)] == [200] * 2
    assert refuses(connection.hears(), 400, "VALIDATION_ERROR")


def test_thousand_pipelined_requests_are_answered(process: Process) -> None:
    before = process.memory
    connection = process.connection()
    connection.socket.settimeout(60)
    connection.says(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    assert all(connection.hears().status == 200 for _ in range(1000))
    assert process.memory - before < 32 * MEBI


def test_upgrade_is_ignored_and_the_connection_closed(process: Process) -> None:
    for upgrade in ("websocket", "h2c"):
        connection = process.connection().says(
            process.head("GET /v1/payments", "Connection: Upgrade", f"Upgrade: {upgrade}")
        )
        assert connection.hears().status == 200
        connection.says(b"\x81\x05hello").drips(b"\x00")
        connection.ends()


ODD_PATHS = (
    "//v1/payments",
    "/v1//payments",
    "/v1/payments//",
    "/./v1/payments",
    "/v1/merchant/../payments",
    "/v1/merchant/%2e%2e/payments",
    "/v1%2fpayments",
    "/v1%2Fpayments",
    "/v1%5cpayments",
    "/v1\\payments",
    "/%2fops",
    "//ops",
    "/%6fps/%2e%2e/v1/payments",
    "/v1/payments/%00",
    "/v1/payments%00",
    "/v1/payments/%0d%0aX-Injected:%201",
    "/v1/payments/" + "x" * 30_000,
    "/" + "/".join("a" * 8000),
    "*",
)


def test_other_spelling_of_a_path_is_not_found(process: Process) -> None:
    for path in ODD_PATHS:
        answer = process.connection().says(process.head(f"GET {path}", "Connection: close")).hears()
        content = json.loads(answer.body)
        assert (answer.status, content["errors"][0]["code"]) == (404, "NOT_FOUND"), path
        assert content["request_id"] == answer.headers["x-request-id"]
        assert "x-injected" not in answer.headers


def test_each_of_several_processes_has_the_same_bounds(host: Host) -> None:
    started = host.start("serve", "--port", "0", "--workers", "2")
    port = int(address_of(started).rpartition(":")[2])
    for _ in range(10):
        assert refuses(Connection(port).says(b"GET /" + b"x" * 40_000).hears(), 431, "PAYLOAD_TOO_LARGE")
    connection = Connection(port).says(b"GET /hea")
    connection.drips(b"x")
    assert refuses(connection.hears(), 408, "REQUEST_TIMEOUT")


def test_server_config_has_the_configured_bounds() -> None:
    bounds = HttpConfig(max_head_bytes=1000)
    config = ServerConfig(print, bounds)
    assert config.bounds is bounds
