"""Request smuggling: bytes that a server could parse as a second request. The verdict counts the requests at the app.

Each case lists the requests it may contain. Any other request that reaches the application, or a forged callback
(``FORGED`` in its path), is a failure, independent of the server's answer.
"""

import json
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORGED = "/v1/cb/stk/forged"
"""The callback that must not get through."""

PROXIED = frozenset({"nginx", "caddy", "ingress"})

_WAIT = 0.2
"""Seconds between segments, so that the server reads each one separately."""

_SILENCE = 1.0
"""Seconds without a byte after which a connection counts as complete."""

_AT_ONCE = 16
"""Concurrent cases."""

_TAG = b"X-Case: 0000"
"""A header in every request of a case, with its number, which relates records to cases. Its length is constant."""


@dataclass(frozen=True)
class Case:
    """One attack. ``segments`` are sent one after the other on one connection.

    ``allowed`` are the paths that may reach the application, at most once each and in this order. With ``must`` all
    of them have to, with ``body`` as the body of the first: honest clients send such a request.
    """

    name: str
    segments: tuple[bytes, ...]
    allowed: tuple[str, ...] = ("/v1/payments",)
    body: bytes | None = None
    must: bool = False
    routes: frozenset[str] = field(default_factory=frozenset[str])
    """Routes of the case; empty for all."""


@dataclass(frozen=True)
class Verdict:
    """The result of a case: ``problem`` is None if the attack failed."""

    case: str
    problem: str | None
    reached: int
    answers: tuple[int, ...]


def forged() -> bytes:
    """Return a forged callback with an address of Safaricom's in X-Forwarded-For."""
    body = b'{"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 0}}}'
    return (
        b"POST "
        + FORGED.encode()
        + b" HTTP/1.1\r\nHost: pay.example.co.ke\r\n"
        + _TAG
        + b"\r\nX-Forwarded-For: 196.201.214.200\r\n"
        b"Content-Type: application/json\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


def post(*headers: str, path: str = "/v1/payments", method: str = "POST", version: str = "HTTP/1.1") -> bytes:
    """Return the head of an otherwise honest request."""
    lines = [f"{method} {path} {version}", "Host: pay.example.co.ke", _TAG.decode(), *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(*parts: bytes, extension: bytes = b"", last: bytes = b"0\r\n\r\n") -> bytes:
    """Return a chunked body."""
    return b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + last


def cases() -> list[Case]:
    """Return all attacks, and honest requests similar to one."""
    return [case for part in (_upgrades, _lengths, _codings, _chunks, _heads, _honest) for case in part()]


TWO = ("/v1/payments", "/v1/second")


def _case(name: str, *segments: bytes, **more: Any) -> Case:
    return Case(name, segments, **more)


def _upgrades() -> Generator[Case]:
    """The body of a request with a rejected Upgrade must remain its body."""
    evil = forged()
    length = f"Content-Length: {len(evil)}"
    for upgrade, extra in (
        ("h2c", ("HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",)),
        ("websocket", ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")),
        ("TLS/1.0", ()),
        ("h2c, websocket", ()),
    ):
        connection = "Connection: Upgrade, HTTP2-Settings" if upgrade == "h2c" else "Connection: Upgrade"
        head = post(connection, f"Upgrade: {upgrade}", *extra, length)
        chunks = post(connection, f"Upgrade: {upgrade}", *extra, "Transfer-Encoding: chunked")
        # Java's HttpClient and curl --http2 send h2c with every first request: the body has to arrive.
        honest: dict[str, Any] = {"must": True, "body": evil} if upgrade == "h2c" else {}
        yield _case(f"Upgrade: {upgrade}, body in the same segment", head + evil, **honest)
        yield _case(f"Upgrade: {upgrade}, body in a later segment", head, evil, **honest)
        yield _case(f"Upgrade: {upgrade}, body in three segments", head + evil[:10], evil[10:50], evil[50:], **honest)
        yield _case(f"Upgrade: {upgrade}, chunked body in a later segment", chunks, chunked(evil), **honest)
        yield _case(f"Upgrade: {upgrade}, head in two segments", head[:40], head[40:] + evil, **honest)
    h2c = ("Connection: Upgrade", "Upgrade: h2c")
    yield _case("Upgrade without Connection", post("Upgrade: h2c", length), evil, must=True, body=evil)
    yield _case("Connection: Upgrade without Upgrade", post("Connection: Upgrade", length), evil, must=True, body=evil)
    yield _case("Upgrade twice", post(*h2c, "Upgrade: websocket", length), evil)
    yield _case("Upgrade in lower case", post("connection: upgrade", "upgrade: H2C", length), evil)
    yield _case("Upgrade and an empty value", post("Connection: Upgrade", "Upgrade: ", length), evil)
    yield _case("Upgrade with HTTP/1.0", post(*h2c, length, version="HTTP/1.0"), evil)
    # The next request starts with empty lines wherever the body is cut: a parser skips them.
    padded = b"\r\n" * 28_000 + evil
    long = post(*h2c, f"Content-Length: {len(padded)}")
    yield _case("Upgrade, a callback after many empty lines", long + padded)
    yield _case("Upgrade, a callback after many empty lines, later segment", long, padded)
    kept = post(*h2c, length, path="/v1/second")
    yield _case("Upgrade on a kept connection", post("Content-Length: 2") + b"{}", kept, evil, allowed=TWO)
    yield _case("Expect and Upgrade", post("Expect: 100-continue", *h2c, length), evil)
    # An application without a path has no such route.
    connect = post(length, method="CONNECT", path="pay.example.co.ke:80")
    yield _case("CONNECT", connect, evil, allowed=("",))
    yield _case("CONNECT with a path", post(length, method="CONNECT"), evil)


_ZERO = b"0\r\n\r\n"


def _lengths() -> Generator[Case]:
    """Two lengths, or one with two readings."""
    evil = forged()
    length = f"Content-Length: {len(evil)}"
    headers: tuple[str, ...]
    for name, headers in {
        "CL and TE": ("Content-Length: 5", "Transfer-Encoding: chunked"),
        "TE and CL": ("Transfer-Encoding: chunked", "Content-Length: 5"),
        "CL long and TE": (f"Content-Length: {5 + len(evil)}", "Transfer-Encoding: chunked"),
    }.items():
        yield _case(name, post(*headers) + _ZERO + evil)
        yield _case(f"{name}, later segment", post(*headers), _ZERO + evil)
    for name, headers in {
        "CL twice, different": ("Content-Length: 0", length),
        "CL twice, different, other order": (length, "Content-Length: 0"),
        "CL twice, equal": (length, length),
        "CL as a list": (f"Content-Length: {len(evil)}, {len(evil)}",),
        "CL as a list, different": (f"Content-Length: 0, {len(evil)}",),
        "CL shorter in a header with NUL": ("Content-Length: 0\x00", length),
    }.items():
        yield _case(name, post(*headers) + evil)
    for value in ("+5", "-5", "0x5", "5 5", "5_0", "5.0", "1e1", "", " ", "5;", "5\t\x0b", "9" * 30):
        yield _case(f"CL: {value!r}", post(f"Content-Length: {value}") + b"hello" + evil)
    second = post("Content-Length: 0", path="/v1/second")
    yield _case("CL: '005'", post("Content-Length: 005") + b"hello" + second, allowed=TWO)


_CODINGS = (
    "xchunked",
    "chunked, identity",
    "identity, chunked",
    "identity",
    "gzip, chunked",
    "chunked, gzip",
    "chunked, chunked",
    "Chunked",
    " chunked",
    "\tchunked",
    "chunked ",
    "chunked\x0b",
    "\x0bchunked",
    '"chunked"',
    "chunked;q=1",
    "chunked,",
    ",chunked",
    "chun ked",
    "chunked\x00",
)


def _codings() -> Generator[Case]:
    """Transfer codings that one parser treats as chunked and the next does not."""
    evil = forged()
    length = f"Content-Length: {len(evil)}"
    te = "Transfer-Encoding: chunked"
    for value in _CODINGS:
        yield _case(f"TE: {value!r} with CL", post("Content-Length: 5", f"Transfer-Encoding: {value}") + _ZERO + evil)
        yield _case(f"TE: {value!r}", post(f"Transfer-Encoding: {value}") + chunked(evil))
    for name, headers in {
        "TE twice": (te, "Transfer-Encoding: identity"),
        "TE with an underscore": ("Transfer_Encoding: chunked", length),
        "TE with a space before the colon": ("Transfer-Encoding : chunked", length),
        "TE folded": ("Transfer-Encoding:\r\n chunked", length),
    }.items():
        yield _case(name, post(*headers) + _ZERO + evil)
    yield _case("TE twice, chunked last", post("Transfer-Encoding: identity", te) + chunked(evil))
    yield _case("TE of HTTP/1.0", post(te, "Connection: keep-alive", version="HTTP/1.0") + _ZERO + evil)


def _chunks() -> Generator[Case]:
    """Chunks with two possible ends."""
    evil = forged()
    second = post("Content-Length: 0", path="/v1/second")
    te = post("Transfer-Encoding: chunked")
    bodies = {
        "extension": chunked(evil, extension=b";a=b"),
        "extension with a quoted return": chunked(evil, extension=b';a="\r\n"'),
        "extension with a bare LF": b"5;a\nb\r\nhello\r\n0\r\n\r\n" + evil,
        "extension of 20,000 bytes": chunked(b"hello", extension=b";" + b"a" * 20_000),
        "size with a bare LF": b"5\nhello\r\n0\r\n\r\n" + evil,
        "size with a bare CR": b"5\rXhello\r\n0\r\n\r\n" + evil,
        "data ends with a bare LF": b"5\r\nhello\n0\r\n\r\n" + evil,
        "data ends with other bytes": b"5\r\nhelloXX0\r\n\r\n" + evil,
        "last chunk with a bare LF": b"5\r\nhello\r\n0\n\n" + evil,
        "last chunk, then one CR LF": b"5\r\nhello\r\n0\r\n" + evil,
        "size with a sign": b"+5\r\nhello\r\n0\r\n\r\n" + evil,
        "size in 0x": b"0x5\r\nhello\r\n0\r\n\r\n" + evil,
        "size with a space before": b" 5\r\nhello\r\n0\r\n\r\n" + evil,
        "size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n" + evil,
        "size of 17 digits": b"10000000000000005\r\nhello\r\n0\r\n\r\n" + evil,
        "size with leading zeros": b"0000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        "size that is empty": b"\r\nhello\r\n0\r\n\r\n" + evil,
        "size that is negative": b"-5\r\nhello\r\n0\r\n\r\n" + evil,
        "trailer that is a length": b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n",
        "trailer that is a request": b"5\r\nhello\r\n0\r\n" + evil[:-1],
        # RFC 9112's grammar of extensions allows white space there, so that a request may follow.
        "size with a space after": b"5 \r\nhello\r\n0\r\n\r\n" + second,
    }
    for name, body in bodies.items():
        allowed = TWO if body.endswith(second) else TWO[:1]
        yield _case(f"chunk {name}", te + body, allowed=allowed)
        yield _case(f"chunk {name}, later segment", te, body, allowed=allowed)


def _heads() -> Generator[Case]:
    """Heads that the next parser reads as another head."""
    evil = forged()
    length = f"Content-Length: {len(evil)}"
    start = b"POST /v1/payments HTTP/1.1\r\n"
    rest = length.encode() + b"\r\n" + _TAG + b"\r\n\r\n" + evil
    for name, sent in {
        "bare LF in the head": post(length).replace(b"\r\n", b"\n") + evil,
        "bare LF after one header": start + b"Host: x\r\nX-A: b\nContent-Length: 0\r\n" + rest,
        "bare CR in a header": start + b"Host: x\r\nX-A: b\rContent-Length: 0\r\n" + rest,
        "folded header": post("X-A: b\r\n c", length) + evil,
        "folded length": post("X-A: b", f"\tContent-Length: 0\r\n{length}") + evil,
        "first header folded": start + b" Host: x\r\n" + rest,
        "space before a colon": post("Content-Length : 0", length) + evil,
        "tab before a colon": post("Content-Length\t: 0", length) + evil,
        "NUL in a name": post("Content-Length\x00: 0", length) + evil,
        "NUL in a value": post("X-A: b\x00c", length) + evil,
        "no colon": post("Content-Length 0", length) + evil,
        "empty name": post(": 0", length) + evil,
        "bytes beyond ASCII in a name": post("Content-L\xe9ngth: 0", length) + evil,
        "CR LF before the request": b"\r\n\r\n" + post(length) + evil,
        "absolute form": post(length, path="http://pay.example.co.ke/v1/payments") + evil,
        "absolute form of another host": post(length, path="http://evil.example/v1/payments") + evil,
        "two Hosts": post("Host: evil.example", length) + evil,
        "no Host": start + rest,
        "HTTP/1.2": post(length, version="HTTP/1.2") + evil,
        "HTTP/2.0": post(length, version="HTTP/2.0") + evil,
        "HTTP/1.1 in lower case": post(length, version="http/1.1") + evil,
        "HTTP/0.9": b"POST /v1/payments\r\n" + evil,
        "two spaces in the request line": post(length, path=" /v1/payments") + evil,
        "tab in the request line": post(length).replace(b"POST /", b"POST\t/", 1) + evil,
        "Connection names Content-Length": post("Connection: close, Content-Length", length) + evil,
        "Connection names X-Forwarded-For": post("Connection: close, X-Forwarded-For", length) + evil,
    }.items():
        yield _case(name, sent)
    absolute = post(length, path=f"http://x{FORGED}") + evil
    yield _case("absolute form with a callback", absolute, allowed=(), routes=PROXIED)
    yield _case("asterisk form", post(length, method="OPTIONS", path="*") + evil, allowed=("*", "/*", ""))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield _case("HTTP/2 preface", preface + evil, allowed=())
    yield _case("HTTP/2 preface, settings", preface + b"\x00\x00\x00\x04" + b"\x00" * 5 + evil, allowed=())


def _honest() -> Generator[Case]:
    """Honest requests, and ends that a client may choose."""
    evil = forged()
    length = f"Content-Length: {len(evil)}"
    whole: dict[str, Any] = {"body": evil, "must": True}
    yield _case("body on GET", post(length, method="GET") + evil, **whole)
    yield _case("body on GET, later segment", post(length, method="GET"), evil, **whole)
    yield _case("body on HEAD", post(length, method="HEAD") + evil)
    chunks = post("Transfer-Encoding: chunked", method="DELETE") + chunked(evil)
    yield _case("body on DELETE in chunks", chunks, **whole)
    yield _case("Expect: 100-continue", post("Expect: 100-continue", length), evil, **whole)
    yield _case("Expect: 100-continue, same segment", post("Expect: 100-continue", length) + evil, **whole)
    yield _case("Expect: something else", post("Expect: 200-ok", length), evil)
    two = [post("Content-Length: 2", path=path) + b"{}" for path in TWO]
    yield _case("two in one segment", b"".join(two), allowed=TWO, body=b"{}", must=True)
    many = tuple(f"/v1/{number}" for number in range(200))
    sent = b"".join(post("Content-Length: 2", path=path) + b"{}" for path in many)
    yield _case("two hundred in one segment", sent, allowed=many, body=b"{}", must=True)
    yield _case("a body longer than its length", post("Content-Length: 2") + b"{}garbage\r\n\r\n")
    half = post(f"Content-Length: {len(evil) + 500}") + evil
    yield _case("half a body, then the end", half, allowed=())
    yield _case("Connection: close, then another", post("Connection: close", "Content-Length: 2") + b"{}" + evil)


def run(port: int, record: Path, route: str, chosen: Sequence[Case], say: Callable[[str], None]) -> list[Verdict]:
    """Send every case to this port and judge each by the application's records."""
    tried = {number: case for number, case in enumerate(chosen, 1) if not case.routes or route in case.routes}
    before = len(_lines(record))

    def send(number: int) -> tuple[int, ...]:
        tag = b"X-Case: %04d" % number
        return _send(port, [segment.replace(_TAG, tag) for segment in tried[number].segments])

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = dict(zip(tried, pool.map(send, tried), strict=True))
    _flush(port, record, f"/marker/{route}")
    reached: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in _lines(record)[before:]:
        if not line["path"].startswith("/marker/"):
            line["body"] = line["body"].replace(f"X-Case: {_number(line):04d}", _TAG.decode())
            reached[_number(line)].append(line)
    verdicts = [
        Verdict(case.name, judge(case, reached[number]), len(reached[number]), answers[number])
        for number, case in tried.items()
    ]
    # The HTTP/2 preface is a head of its own, which Caddy passes on as `PRI *`.
    others = [line for number, lines in reached.items() if number not in tried for line in lines]
    stray = [line["path"] for line in others if (line["method"], line["path"]) != ("PRI", "*")]
    if stray:
        verdicts.append(Verdict("a request of no case", f"reached the application: {stray[:5]}", len(stray), ()))
    for one in verdicts:
        if one.problem is not None:
            say(f"  {route}: {one.case}: {one.problem} (answers {one.answers})")
    return verdicts


def _number(line: Mapping[str, Any]) -> int:
    """Return the number of the case of a recorded request, 0 for none."""
    found = [value for name, value in line["headers"] if name.lower() == "x-case" and value.isdigit()]
    return int(found[0]) if found else 0


def judge(case: Case, reached: Sequence[dict[str, Any]]) -> str | None:
    """Return the reason of a successful attack, or None."""
    if any(FORGED in line["path"] for line in reached):
        return "the forged callback reached the application"
    paths = [line["path"] for line in reached]
    if len(paths) > len(case.allowed) or not _is_within(paths, case.allowed):
        return f"reached the application: {', '.join(paths[:5])}"
    if case.must:
        if len(paths) != len(case.allowed):
            return f"{len(paths)} of {len(case.allowed)} honest requests reached the application"
        if case.body is not None and reached[0]["body"].encode("latin-1") != case.body:
            return "the body did not arrive whole"
    return None


def _is_within(paths: Sequence[str], allowed: Sequence[str]) -> bool:
    rest = iter(allowed)
    return all(any(path == may for may in rest) for path in paths)


def _lines(record: Path) -> list[dict[str, Any]]:
    text = record.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _send(port: int, segments: Sequence[bytes]) -> tuple[int, ...]:
    """Send the segments; returns the status codes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for number, segment in enumerate(segments):
                if number:
                    time.sleep(_WAIT)
                line.sendall(segment)
            line.settimeout(_SILENCE)
            while part := line.recv(65_536):
                answer += part
                if answer.count(b"\r\n\r\n") >= 200:
                    break
        except OSError:
            pass
    return tuple(int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit())


def _flush(port: int, record: Path, path: str) -> None:
    """Wait until a request of our own is recorded: earlier ones are then recorded as well."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                while line.recv(65_536):
                    pass
        except OSError:
            time.sleep(0.1)
            continue
        if f'"{path}"' in record.read_text(encoding="utf-8"):
            return
    raise RuntimeError("the attacked server does not answer any more")
