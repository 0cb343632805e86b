"""A TCP forwarder that can stall, as a server does whose machine hangs."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Stalling:
    """Forwards connections, or keeps what it receives while it stalls."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._flows = asyncio.Event()
        self._flows.set()
        self._port = 0

    @property
    def url(self) -> str:
        """The given address, through this forwarder."""
        login, at, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(netloc=f"{login}{at}127.0.0.1:{self._port}").geturl()

    def stall(self) -> None:
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._parts.hostname
        assert self._parts.port
        there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        await asyncio.gather(self._forward(reader, back), self._forward(there, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def stalling(url: str) -> AsyncGenerator[Stalling]:
    """Yield a forwarder to the server of this address. It flows again at the end."""
    forwarder = Stalling(url)
    server = await asyncio.start_server(forwarder._handle, "127.0.0.1", 0)
    forwarder._port = server.sockets[0].getsockname()[1]
    try:
        yield forwarder
    finally:
        forwarder.resume()
        server.close()
