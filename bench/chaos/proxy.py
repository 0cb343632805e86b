"""A TCP wire between two processes that can be cut, delayed and refused; bytes pass unchanged."""

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHUNK = 65536


class Wire:
    """Listens on a free port and forwards connections to the ``targets`` in turn."""

    def __init__(self, targets: Callable[[], list[int]], rng: random.Random) -> None:
        self._targets = targets
        self._rng = rng
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._holder: socket.socket | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0
        self.delay = 0.0
        """Delay of each answer in seconds."""
        self.garble: bytes | None = None
        """Bytes that are no HTTP, sent instead of an answer before the connection ends."""
        self.cut_share = 0.0
        """The share of connections that are cut once the first bytes of an answer are sent."""

    async def start(self) -> None:
        # Bound without listening: the port stays reserved, and connections to it are refused.
        self._holder = _bound(0)
        self.port = self._holder.getsockname()[1]
        await self.admit()

    async def stop(self) -> None:
        """Stop, and close open connections."""
        self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._holder is not None:
            self._holder.close()

    def refuse(self) -> None:
        """Refuse new connections. Open ones stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def admit(self) -> None:
        """Listen again."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self.port))

    def cut(self) -> None:
        """Reset every open connection."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return a connection to the next target that answers."""
        ports = self._targets()
        for _ in ports:
            self._turn += 1
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", ports[self._turn % len(ports)])
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        found = await self._connect()
        if found is None:
            writer.transport.abort()
            return
        inner_reader, inner_writer = found
        self._open |= {writer, inner_writer}
        is_doomed = self._rng.random() < self.cut_share
        try:
            await asyncio.gather(
                self._pass(reader, inner_writer), self._pass(inner_reader, writer, is_answer=True, is_doomed=is_doomed)
            )
        finally:
            self._open -= {writer, inner_writer}
            for one in (writer, inner_writer):
                one.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_answer: bool = False,
        is_doomed: bool = False,
    ) -> None:
        # RuntimeError: uvloop's word for a connection that the other side of the proxy has reset.
        with suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            while chunk := await reader.read(_CHUNK):
                if is_doomed:
                    break
                if is_answer and self.delay:
                    await asyncio.sleep(self.delay)
                if is_answer and self.garble is not None:
                    writer.write(self.garble)
                    await writer.drain()
                    break
                writer.write(chunk)
                await writer.drain()
        if is_doomed:
            writer.transport.abort()
            return
        with suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()


def _bound(port: int) -> socket.socket:
    """Return a socket on this port of loopback, or on a free one for 0, that our processes may share."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", port))
    return found
