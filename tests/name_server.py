"""A DNS server on a free loopback port, scripted by the test: slow, wrong, truncated or no answers."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

A, CNAME, AAAA = 1, 5, 28
NXDOMAIN, SERVFAIL, REFUSED = 3, 2, 5

_HEAD = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")


@dataclass(frozen=True)
class Question:
    """One question: its name in lower case without the last dot, and its type."""

    ident: int
    name: str
    kind: int
    raw: bytes
    """The question section."""


@dataclass(frozen=True)
class Records:
    """An answer: owner, type and value of each record, the code, and the truncation flag."""

    records: tuple[tuple[str, int, str], ...] = ()
    code: int = 0
    is_cut_short: bool = False


Answering = Callable[[Question], Awaitable[Records | bytes | None]]
"""Returns the answer to a question: records, raw bytes, or None for no answer."""


@dataclass
class NameServer:
    """The questions by UDP and by TCP, and the function that answers them."""

    answer: Answering
    address: str = ""
    asked: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    """Transport, name and type of each question."""

    async def reply(self, transport: str, data: bytes) -> bytes | None:
        """Return the bytes of the answer, None for none."""
        question = _read(data)
        self.asked.append((transport, question.name, question.kind))
        said = await self.answer(question)
        return _write(question, said) if isinstance(said, Records) else said


def always(*addresses: str, code: int = 0) -> Answering:
    """Return a function that answers each name with these addresses, by the type of the question."""

    async def answer(question: Question) -> Records:
        version = {A: 4, AAAA: 6}[question.kind]
        found = [text for text in addresses if ip_address(text).version == version]
        return Records(tuple((question.name, question.kind, text) for text in found), code)

    return answer


async def never(_: Question) -> None:
    """Send no answer."""


def _read(data: bytes) -> Question:
    (ident,) = struct.unpack_from("!H", data)
    labels, at = list[str](), 12
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode("latin-1"))
        at += 1 + length
    (kind,) = struct.unpack_from("!H", data, at + 1)
    return Question(ident, ".".join(labels).lower(), kind, data[12 : at + 5])


def _name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode("latin-1") for label in text.split(".") if label) + b"\0"


def _write(question: Question, said: Records) -> bytes:
    flags = 0x8180 | said.code | (0x0200 if said.is_cut_short else 0)
    body = _HEAD.pack(question.ident, flags, 1, len(said.records), 0, 0) + question.raw
    for owner, kind, value in said.records:
        data = _name(value) if kind == CNAME else ip_address(value).packed
        body += _name(owner) + _RECORD.pack(kind, 1, 60, len(data)) + data
    return body


@asynccontextmanager
async def name_server(answer: Answering) -> AsyncGenerator[NameServer]:
    """Yield a server for UDP and TCP on one free port."""
    server = NameServer(answer)
    busy: set[asyncio.Task[None]] = set()

    class Udp(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            task = asyncio.create_task(self.respond(data, addr))
            busy.add(task)
            task.add_done_callback(busy.discard)

        async def respond(self, data: bytes, addr: tuple[str, int]) -> None:
            said = await server.reply("udp", data)
            if said is not None:
                self.transport.sendto(said, addr)  # type: ignore[attr-defined]

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                said = await server.reply("tcp", await reader.readexactly(length))
                if said is not None:
                    writer.write(struct.pack("!H", len(said)) + said)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            busy.discard(task)

    loop = asyncio.get_running_loop()
    listener = await asyncio.start_server(tcp, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    udp, _ = await loop.create_datagram_endpoint(Udp, ("127.0.0.1", port), family=socket.AF_INET)
    server.address = f"127.0.0.1:{port}"
    try:
        yield server
    finally:
        udp.close()
        listener.close()
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
