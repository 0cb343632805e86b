"""A reverse proxy in front of a gateway: passes requests on, adds a header, terminates TLS, or answers itself."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

Answer = Callable[[str], bytes | None]
"""Returns the HTTP answer for a path; None passes the request on."""


@dataclass
class Proxy:
    """The target of the proxy, the header that it adds, and its own answers."""

    port: int = 0
    target: int = 0
    adds: str = ""
    answer: Answer | None = None

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request without a body, and close."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.decode("latin-1").split(" ")[1]
            own = self.answer(path) if self.answer is not None else None
            writer.write(await self._pass_on(head) if own is None else own)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _pass_on(self, head: bytes) -> bytes:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            line, _, rest = head.partition(b"\r\n")
            kept = [part for part in rest.split(b"\r\n") if part and not part.lower().startswith(b"connection:")]
            added = [part.encode() for part in (self.adds, "Connection: close") if part]
            back.write(b"\r\n".join([line, *kept, *added, b"", b""]))
            return await there.read(-1)
        finally:
            back.close()


def http_answer(status: str, body: str = "", *headers: str) -> bytes:
    """Return a whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Server: somebody", *headers, "", body]
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def proxying(certificate: Path | None = None) -> AsyncGenerator[Proxy]:
    """Yield a proxy on a free port; with TLS if it has a certificate."""
    proxy = Proxy()
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, ssl=context)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
