"""A misbehaving name server and webhook hosts, in a process of their own: ``python -m bench.attack.hostile``.

It prints the ports of both as JSON and runs until it is stopped. The first part of a path selects the answer.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import uvloop

_DNS_SECONDS = 20.0
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_BOMB = _OK + b"Content-Encoding: gzip\r\nContent-Length: 10000000\r\n\r\n" + b"\x1f\x8b" + b"\0" * 10_000_000
_HEALTHY = _OK + b"Content-Length: 0\r\n\r\n"

_ANSWERS = {
    "chunks": _CHUNKED + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n",
    "hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
    "bad-chunk": _CHUNKED + b"ZZ\r\nhi\r\n0\r\n\r\n",
    "bomb": _BOMB,
    "redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /redirect\r\nContent-Length: 0\r\n\r\n",
    "huge-head": _OK + b"X-A: " + b"x" * 10_000_000,
}
"""Answers sent at once, after which the connection is closed."""


class _SlowDns(asyncio.DatagramProtocol):
    """Answers after 20 seconds that the name does not exist."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = data[:2] + b"\x81\x83" + data[4:]
        asyncio.get_running_loop().call_later(_DNS_SECONDS, self._transport.sendto, answer, addr)  # type: ignore[attr-defined] # of a datagram transport


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float) -> None:
    writer.write(_OK + b"Content-Length: 100000\r\n\r\n")
    closed = asyncio.create_task(reader.read())
    while not closed.done():
        writer.write(b"x")
        await writer.drain()
        await asyncio.wait([closed], timeout=pause)


async def _hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _answer_well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # The connection is kept, as by a healthy host.
    writer.write(_HEALTHY)
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(_HEALTHY)


_SLOWLY: dict[str, Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]] = {
    "drip": partial(_drip, pause=0.1),
    "fast-drip": partial(_drip, pause=0.001),
    "hang": _hang,
}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
        head = await reader.readuntil(b"\r\n\r\n")
        name = head.split(b" ")[1].decode("latin-1").split("/")[1]
        if name in _ANSWERS:
            writer.write(_ANSWERS[name])
            await writer.drain()
        else:
            await _SLOWLY.get(name, _answer_well)(reader, writer)
    writer.close()


async def _main() -> None:
    udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(_SlowDns, ("127.0.0.1", 0))
    async with await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1000) as server:
        ports = {"dns": udp.get_extra_info("sockname")[1], "web": server.sockets[0].getsockname()[1]}
        print(json.dumps(ports), flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    os.nice(19)
    uvloop.run(_main())
