"""The merchant's endpoint: records every delivery with its time, and fails in every way of real endpoints."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from standardwebhooks import Webhook, WebhookVerificationError

from bench.chaos.proxy import Wire

_PATH = "/webhooks"

Mode = Literal["well", "slow", "500", "redirects", "hangs"]
"""Modes of the endpoint; ``hangs`` stops in the middle of its status line, or of its body: a 2xx counts by then."""


@dataclass(frozen=True)
class Delivery:
    """One POST: its time (seconds since 1970), id, event, bytes, and whether it was answered 2xx."""

    at: float
    webhook_id: str
    event: dict[str, Any]
    body: bytes
    is_taken: bool
    is_signed: bool


@dataclass
class Endpoint:
    """A server on a free port for all merchants of a run. Each merchant's secret is added once known."""

    rng: random.Random
    secrets: list[str] = field(default_factory=list[str])
    mode: Mode = "well"
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    other_requests: list[str] = field(default_factory=list[str])
    """Other requests, such as the target of a redirect, which must not be followed."""
    _port: int = 0
    _server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self.wire = Wire(lambda: [self._port], self.rng)
        """The wire to it, which can be refused."""

    @property
    def url(self) -> str:
        """Return the webhook URL."""
        return f"http://127.0.0.1:{self.wire.port}{_PATH}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        await self.wire.start()

    async def stop(self) -> None:
        await self.wire.stop()
        if self._server is not None:
            self._server.close()

    def delivered(self) -> dict[str, Delivery]:
        """Return the first delivery answered 2xx, by webhook-id."""
        found: dict[str, Delivery] = {}
        for delivery in self.deliveries:
            if delivery.is_taken:
                found.setdefault(delivery.webhook_id, delivery)
        return found

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
                headers = {name.strip().lower(): value.strip() for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if head[0].split(" ")[:2] != ["POST", _PATH]:
                    self.other_requests.append(head[0])
                    return
                if not await self._answer(headers, body, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(self, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer according to the mode; returns whether the connection stays open."""
        mode = self.mode
        if mode == "slow":
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))
        status = {"500": 500, "redirects": 302}.get(mode, 200)
        if mode == "hangs":
            is_taken = self.rng.random() < 0.5
            self._keep(headers, body, is_taken=is_taken)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of it" if is_taken else b"HTTP/1.1 20")
            await writer.drain()
            await asyncio.sleep(6)
            return False
        # Recorded before the answer, as a careful merchant does; it counts as delivered from then on.
        self._keep(headers, body, is_taken=status == 200)
        extra = "Location: /elsewhere\r\n" if status == 302 else ""
        writer.write(f"HTTP/1.1 {status} Said\r\n{extra}Content-Length: 2\r\n\r\nok".encode())
        await writer.drain()
        return True

    def _keep(self, headers: dict[str, str], body: bytes, *, is_taken: bool) -> None:
        is_signed = any(_is_signed(secret, headers, body) for secret in self.secrets)
        event = msgspec.json.decode(body, type=dict[str, Any])
        webhook_id = headers.get("webhook-id", "")
        self.deliveries.append(Delivery(time.time(), webhook_id, event, body, is_taken, is_signed))


def _is_signed(secret: str, headers: dict[str, str], body: bytes) -> bool:
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True
