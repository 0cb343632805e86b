"""A wire between two processes that can be cut, delayed and refused: TCP on loopback, nothing read, nothing changed."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHUNK = 65536


class Wire:
    """Listens on a free port and passes connections on to whoever ``targets`` names, in turn."""

    def __init__(self, targets: Callable[[], list[int]], rng: random.Random) -> None:
        self._targets = targets
        self._rng = rng
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0
        self.refuses = False
        self.delay = 0.0
        """Seconds by which each answer is late."""
        self.cut_share = 0.0
        """The share of connections that are cut once the first bytes of an answer are on their way."""

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop, and cut what is open."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every open connection."""
        for writer in list(self._open):
            self._reset(writer)

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The next target that answers."""
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
        found = None if self.refuses else await self._connect()
        if found is None:
            self._reset(writer)
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
                self._reset(one)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_answer: bool = False,
        is_doomed: bool = False,
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while chunk := await reader.read(_CHUNK):
                if is_doomed:
                    break
                if is_answer and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                await writer.drain()
        if is_doomed:
            self._reset(writer)
            return
        with suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()
