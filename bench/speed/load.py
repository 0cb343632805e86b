"""The load generator, its own process: sends prepared requests on kept connections, one at a time on each.

A JSON object on stdin is the order, one on stdout the result. The requests are in a file, each after its length: none
is built while the clock runs. Also a module of functions for its callers.
"""

import asyncio
import contextlib
import json
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, cycle
from pathlib import Path
from typing import Any

import uvloop

from bench.speed.wire import Client

_LENGTH = struct.Struct(">I")


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a whole HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body or method != "GET":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Write requests for the load generator."""
    with path.open("wb") as file:
        for one in requests:
            file.write(_LENGTH.pack(len(one)) + one)


async def call(port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """Return the body of a successful answer. Raises RuntimeError for any other, OSError without a server."""
    _, connection = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    try:
        status = await connection.send(request(method, path, headers or {}, body))
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {connection.body[:300]!r}")
        return connection.body
    finally:
        connection.close()


def _read_requests(path: Path) -> list[bytes]:
    content = path.read_bytes()
    found: list[bytes] = []
    at = 0
    while at < len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        found.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return found


class _Load:
    def __init__(self, job: dict[str, Any]) -> None:
        found = _read_requests(Path(job["requests"]))
        # Repeatable requests are cycled; others are used once.
        self.source: Iterator[bytes] = cycle(found) if job["repeat"] else iter(found)
        self.job = job
        self.counted: list[float] = []
        self.statuses: dict[int, int] = {}
        self.example = b""
        self.ran_dry = False
        self.began = self.from_ = self.until = 0.0
        self.turns = count()

    async def client(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        clock = time.perf_counter
        _, connection = await loop.create_connection(Client, "127.0.0.1", port)
        expected = set(self.job["expect"])
        try:
            while clock() < self.until:
                try:
                    request_bytes = next(self.source)
                except StopIteration:
                    self.ran_dry = True
                    return
                if self.job["per_second"] is not None:
                    # Late clients catch up: the rate is the one asked for.
                    await asyncio.sleep(self.began + next(self.turns) / self.job["per_second"] - clock())
                sent = clock()
                status = await connection.send(request_bytes)
                done = clock()
                self.statuses[status] = self.statuses.get(status, 0) + 1
                if status not in expected and not self.example:
                    self.example = connection.body[:300]
                if self.from_ <= done < self.until:
                    self.counted.append(done - sent)
        finally:
            connection.close()

    async def run(self) -> dict[str, Any]:
        ports: list[int] = self.job["ports"]
        self.began = time.perf_counter()
        self.from_ = self.began + self.job["warm_up"]
        self.until = self.from_ + self.job["seconds"]
        # A missing answer must not block the round.
        async with asyncio.timeout(self.job["warm_up"] + self.job["seconds"] + 30):
            await asyncio.gather(*(self.client(ports[n % len(ports)]) for n in range(self.job["clients"])))
        # An exhausted source ended the round early: the count covers the time until then.
        seconds = min(time.perf_counter(), self.until) - self.from_
        ordered = sorted(self.counted) or [0.0]
        return {
            "rate": len(self.counted) / seconds if seconds > 0 else 0.0,
            "requests": len(self.counted),
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000,
            "statuses": self.statuses,
            "ran_dry": self.ran_dry,
            "example": self.example.decode("utf-8", "replace"),
        }


def main() -> None:
    """Execute the order on stdin."""
    job = json.loads(sys.stdin.read())
    with contextlib.closing(uvloop.new_event_loop()) as loop:
        sys.stdout.write(json.dumps(loop.run_until_complete(_Load(job).run())))


if __name__ == "__main__":
    main()
