"""Attackers, each in its own process, from one loopback address or 200: ``python -m bench.attack.attackers``.

An attacker prints ``ready`` once all of its connections are open, or after eight seconds. It stops when its time or its
requests are used up, and prints the counts of the answers as JSON.
"""

import asyncio
import itertools
import json
import math
import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvloop

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]

MOST_REQUESTS = 100_000
"""The most requests of one attacker."""

_SET_UP = 8.0
"""Seconds within which all connections have to be open."""

_AGAIN = 0.05
"""Seconds before a closed connection is reopened."""

_KEY = "sk_test_" + "0" * 48


class Target:
    """The attacked server, until the time is over."""

    def __init__(self, port: int, seconds: float, addresses: int) -> None:
        self.port = port
        self._seconds = seconds
        self._until = math.inf
        self._set_up = 0
        self.answers: Counter[str] = Counter()
        # 127.0.0.1 belongs to the honest merchant.
        many = [f"127.1.{number // 200}.{number % 200 + 1}" for number in range(addresses)]
        self._sources = itertools.cycle(["127.0.0.2"] if addresses == 1 else many)
        self._requests = itertools.count()

    @property
    def has_time(self) -> bool:
        """Return True while there is time left."""
        return asyncio.get_running_loop().time() < self._until

    async def connect(self, receive_buffer: int = 0) -> Line:
        """Open a connection; ``receive_buffer`` limits the operating system's buffer, in bytes."""
        line = socket.socket()
        try:
            line.settimeout(0)
            if receive_buffer:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            line.bind((next(self._sources), 0))
            await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=line)
        except BaseException:
            line.close()
            raise

    def count_connection(self) -> None:
        """Count a connection that is in place."""
        self._set_up += 1

    async def repeat(self, once: Callable[[], Awaitable[None]], times: int, pause: float = _AGAIN) -> None:
        """Run this many concurrent copies, each restarted when it ends or the server disconnects."""

        async def loop() -> None:
            while self.has_time:
                try:
                    await once()
                except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                    self.answers["hung up"] += 1
                # This limit keeps the flood, and not the connection rate of this program, as the measured load.
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(loop()) for _ in range(times)]
        with suppress(TimeoutError):
            async with asyncio.timeout(_SET_UP):
                while self._set_up < times:  # noqa: ASYNC110 - the tasks only count
                    await asyncio.sleep(0.05)
        print("ready", flush=True)
        self._until = asyncio.get_running_loop().time() + self._seconds
        await asyncio.sleep(self._seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send_repeatedly(self, request: bytes) -> None:
        """Send a request repeatedly on one connection."""
        reader, writer = await self.connect()
        try:
            while self.has_time and next(self._requests) < MOST_REQUESTS:
                writer.write(request)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                self.answers[head[9:12].decode("latin-1")] += 1
                self.count_connection()
                lines = head.lower().split(b"\r\n")
                length = next((line[15:] for line in lines if line.startswith(b"content-length:")), b"0")
                await reader.readexactly(int(length))
                if b"connection: close" in lines:
                    return
            if self.has_time:
                await asyncio.sleep(self._seconds)
        finally:
            writer.close()

    async def send_and_hold(self, sent: bytes, drip: bytes = b"", *, is_answered: bool = False) -> None:
        """Send some bytes, then nothing or one byte now and then, until the server disconnects."""
        reader, writer = await self.connect()
        try:
            writer.write(sent)
            await writer.drain()
            if is_answered:
                await reader.readuntil(b"\r\n\r\n")
            self.count_connection()
            if drip:
                closed = asyncio.create_task(reader.read())
                while not closed.done():
                    await asyncio.wait([closed], timeout=0.5)
                    writer.write(drip)
                await closed
            else:
                await reader.read()
            self.answers["closed"] += 1
        finally:
            writer.close()


def request(line: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a request; ``length`` declares another number of bytes than ``body`` has."""
    size = len(body) if length is None else length
    sized = [f"Content-Length: {size}"] if size else []
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, *sized, "", ""]).encode() + body


async def idle(target: Target) -> None:
    """2,000 connections that send nothing."""
    await target.repeat(lambda: target.send_and_hold(b""), 2000)


async def idle_kept(target: Target) -> None:
    """2,000 kept connections, after one request each."""
    await target.repeat(lambda: target.send_and_hold(request("GET /health/live"), is_answered=True), 2000)


async def slow_heads(target: Target) -> None:
    """500 heads that come byte by byte."""
    head = b"POST /v1/payments HTTP/1.1\r\nHost: x\r\nX-A: "
    await target.repeat(lambda: target.send_and_hold(head, b"x"), 500)


async def slow_logins(target: Target) -> None:
    """420 login bodies that come byte by byte."""
    form = "Content-Type: application/x-www-form-urlencoded"
    half = request("POST /ops/login", form, body=b"email=a", length=4000)
    await target.repeat(lambda: target.send_and_hold(half, b"x"), 420)


async def half_bodies(target: Target) -> None:
    """1,000 halves of a body, and then nothing."""
    half = request("POST /v1/payments", f"X-API-Key: {_KEY}", body=b"{" + b" " * 500, length=60_000)
    await target.repeat(lambda: target.send_and_hold(half), 1000)


async def huge_heads(target: Target) -> None:
    """Heads of 1 MiB on 20 connections, 100 a second at most: what a line of 1 Gbit/s carries."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"x" * 1_048_576
    await target.repeat(lambda: target.send_and_hold(head), 20, pause=0.2)


async def deaf(target: Target) -> None:
    """100 clients that ask for the largest document 20 times and read nothing."""

    async def once() -> None:
        _, writer = await target.connect(receive_buffer=4096)
        try:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request("GET /schema/openapi.json") * 20)
            target.count_connection()
            await asyncio.sleep(30)
        finally:
            writer.transport.abort()

    await target.repeat(once, 100)


async def without_key(target: Target) -> None:
    """Calls without a key on 118 kept connections, up to 100,000."""
    await target.repeat(lambda: target.send_repeatedly(request("GET /v1/payments")), 118)


async def wrong_keys(target: Target) -> None:
    """Calls with a well-formed wrong key on 50 kept connections."""
    await target.repeat(lambda: target.send_repeatedly(request("GET /v1/payments", f"X-API-Key: {_KEY}")), 50)


async def logins(target: Target) -> None:
    """20 password guesses at a time."""
    form = "Content-Type: application/x-www-form-urlencoded"
    origin = f"Origin: http://127.0.0.1:{target.port}"
    guess = request("POST /ops/login", form, origin, body=b"email=admin@shop.example&password=guessed-at-random")
    await target.repeat(lambda: target.send_repeatedly(guess), 20)


async def documents(target: Target) -> None:
    """30 clients that ask for the API's description."""
    await target.repeat(lambda: target.send_repeatedly(request("GET /schema")), 30)


async def forged_callbacks(target: Target) -> None:
    """Forged callbacks on 50 kept connections."""
    body = b'{"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 0}}}'
    sent = request("POST /v1/cb/stk/forged", "Content-Type: application/json", body=body)
    await target.repeat(lambda: target.send_repeatedly(sent), 50)


async def upgrades(target: Target) -> None:
    """Requests with Upgrade and a body on 50 kept connections."""
    sent = request("POST /v1/payments", "Connection: Upgrade", "Upgrade: h2c", body=b"{}")
    await target.repeat(lambda: target.send_repeatedly(sent), 50)


@dataclass(frozen=True)
class Attack:
    """One flood. ``is_proxied``: it also runs through the proxies."""

    name: str
    run: Callable[[Target], Awaitable[None]]
    addresses: int = 1
    is_proxied: bool = False

    @property
    def has_bar(self) -> bool:
        """Return True for a flood from one address: an honest merchant then has to keep its rate."""
        return self.addresses == 1

    @property
    def text(self) -> str:
        """Return the description."""
        text = (self.run.__doc__ or "").rstrip(".")
        return text if self.has_bar else f"{text}, from {self.addresses} addresses"


ATTACKS = (
    Attack("idle", idle),
    Attack("idle-kept", idle_kept),
    Attack("slow-heads", slow_heads),
    Attack("slow-logins", slow_logins),
    Attack("half-bodies", half_bodies, is_proxied=True),
    Attack("huge-heads", huge_heads),
    Attack("deaf", deaf),
    Attack("no-key", without_key, is_proxied=True),
    Attack("wrong-keys", wrong_keys),
    Attack("logins", logins),
    Attack("documents", documents),
    Attack("forged-callbacks", forged_callbacks),
    Attack("upgrades", upgrades),
    Attack("no-key-200", without_key, 200),
    Attack("logins-200", logins, 200),
    Attack("half-bodies-200", half_bodies, 200),
)


def attacking(attack: Coroutine[Any, Any, Mapping[str, int]]) -> None:
    """Run an attack in its own process and print the counts of the answers.

    An attacker has its own machine in reality: here it runs at the lowest priority.
    """
    os.nice(19)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(uvloop.run(attack)))


async def _attack(name: str, port: int, seconds: float) -> Mapping[str, int]:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    target = Target(port, seconds, attack.addresses)
    await attack.run(target)
    return target.answers


if __name__ == "__main__":
    attacking(_attack(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
