"""A gateway for tests, served over HTTP with its worker and a client."""

import asyncio
import socket
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import niquests
import uvicorn
from litestar import Litestar

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig, HttpConfig
from mpesa_gateway.http.protocol import ServerConfig
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.security.scopes import Env, Scope
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.databases import database_settings, fill

T = TypeVar("T")

PLUGINS = (
    "credentials",
    "callbacks",
    "transactions",
    "payments",
    "c2b",
    "refunds",
    "reconciliation",
    "qr",
    "webhooks",
    "ops",
    "simulator",
)
"""Plugins of a gateway for tests; the simulator is its Daraja."""

SANDBOX: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": {
        "env": "sandbox",
        "consumer_key": "consumer-key-of-tests",
        "consumer_secret": "consumer-secret-of-tests",
        "passkey": "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919",
        "shortcode": "174379",
    },
}
"""Credentials that the simulator accepts: the sandbox's public shortcode and passkey."""


INITIATED: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": SANDBOX["mpesa"]
    | {
        "initiator": "testapi",
        "security_credential": b64encode(b"encrypted elsewhere".ljust(256, b".")).decode(),
        "nominated_number": "254708374149",
    },
}
"""With the initiator for status queries, refunds and reconciliation."""


def gateway_values(database_url: str, valkey_url: str, **changes: Any) -> dict[str, Any]:
    """Return values for ``GatewayConfig.from_values``; sections in ``changes`` are merged."""
    values: dict[str, Any] = {
        "plugins": list(PLUGINS),
        "database": database_settings(database_url) | {"pool_max": 10},
        "valkey": {"url": valkey_url},
        "security": {"master_key": generate()},
        # Each slot opens a connection at start. Maintenance needs one for each cron.
        "worker": {"in_process": True, "grace": 5, "deliveries": 2, "daraja": 3, "maintenance": 3, "default": 1},
        "limits": {"requests_per_second": 10_000, "burst": 20_000},
        "http": {"anonymous_per_second": 10_000},
        "simulator": {"callback_delay": 0.05, "strict": True},
        "metrics": {"networks": ["127.0.0.0/8"]},
        "traces": {"endpoint": "http://127.0.0.1:1/nobody"},
    }
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    for name in ("simulator", "metrics", "traces"):
        if name not in values["plugins"]:
            del values[name]
    return values


def listening() -> socket.socket:
    # asyncio disables Nagle's algorithm only if the protocol is named; with it, each answer waits 40 ms.
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.bind(("127.0.0.1", 0))
    return found


@asynccontextmanager
async def serving(app: Any, at: socket.socket, http: HttpConfig | None = None, **more: Any) -> AsyncGenerator[str]:
    """Serve an ASGI application on this socket, as `mpesa-gateway serve` does; yield its base URL.

    Raises RuntimeError if it does not start; the log has the reason.
    """
    server = _Server(ServerConfig(app, http or HttpConfig(), proxy_headers=False, timeout_graceful_shutdown=5, **more))
    task = asyncio.create_task(_serve(server, at))
    try:
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the application did not start")
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{at.getsockname()[1]}"
    finally:
        server.end()
        await task


class _Server(uvicorn.Server):
    """Ends at once when requested; uvicorn polls every 0.1 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._end_requested = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._end_requested.set()

    async def main_loop(self) -> None:
        ticking, end_requested = (
            asyncio.create_task(super().main_loop()),
            asyncio.create_task(self._end_requested.wait()),
        )
        await asyncio.wait((ticking, end_requested), return_when=asyncio.FIRST_COMPLETED)
        for task in (ticking, end_requested):
            task.cancel()
        await asyncio.gather(ticking, end_requested, return_exceptions=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for at in sockets or ():
            at.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - uvicorn signals neither
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()


async def _serve(server: uvicorn.Server, at: socket.socket) -> None:
    try:
        await server.serve(sockets=[at])
    except SystemExit:
        # In a task, uvicorn's exit would stop the test's event loop.
        raise RuntimeError("the application did not start") from None


@asynccontextmanager
async def running_gateway(values: dict[str, Any], **options: Any) -> AsyncGenerator[tuple[Gateway, str]]:
    """Yield a gateway with these settings and its base URL.

    It is its own Daraja unless the settings name another. Live calls find none: no test leaves this machine.
    """
    at = listening()
    base = f"http://127.0.0.1:{at.getsockname()[1]}"
    daraja = {"sandbox_url": base + "/simulator", "live_url": base + "/nobody"} | values.get("daraja", {})
    values = {"public_url": base} | values | {"daraja": daraja}
    with at:
        gateway = Gateway(GatewayConfig.from_values(values), **options)
        await fill(gateway)
        with _lent_application(gateway):
            async with serving(gateway.asgi, at, gateway.config.http):
                yield gateway, base


@dataclass(frozen=True)
class _Idle:
    plugins: tuple[Plugin, ...]
    max_body_bytes: int
    application: Litestar

    def suits(self, gateway: Gateway) -> bool:
        return (
            self.max_body_bytes == gateway.config.http.max_body_bytes
            and len(self.plugins) == len(gateway.plugins)
            and all(one is other for one, other in zip(self.plugins, gateway.plugins, strict=True))
        )


_idle: deque[_Idle] = deque(maxlen=8)


@contextmanager
def _lent_application(gateway: Gateway) -> Generator[None]:
    """Reuse an application of the same plugins: building one takes 0.1 s."""
    found = next((each for each in reversed(_idle) if each.suits(gateway)), None)
    if found is not None:
        _idle.remove(found)
        gateway.asgi.use_application(found.application)
    try:
        yield
    finally:
        if (released := gateway.asgi.release()) is not None:
            _idle.append(_Idle(gateway.plugins, gateway.config.http.max_body_bytes, released))


async def eventually(probe: Callable[[], Awaitable[T]], patience: float = 15.0) -> T:
    """Return the probe's first true result. Raises TimeoutError after ``patience`` seconds."""
    async with asyncio.timeout(patience):
        while True:
            if found := await probe():
                return found
            await asyncio.sleep(0.02)


class Answer:
    """An answer of the API."""

    def __init__(self, status: int, headers: Mapping[str, str], body: dict[str, Any]) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def data(self) -> Any:
        """Return ``data``. Raises AssertionError with the errors unless successful."""
        if not self.body.get("success"):
            raise AssertionError(f"HTTP {self.status}: {self.body}")
        return self.body["data"]

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body["errors"][0]
        return found


class Api:
    """A merchant's client."""

    def __init__(self, base: str, key: str | None) -> None:
        self.base = base
        self.key = key
        self._session = niquests.AsyncSession(retries=0, pool_maxsize=100)
        self._session.trust_env = False
        self._headers = {} if key is None else {"X-API-Key": key}

    async def close(self) -> None:
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; ``raw`` sends these bytes as JSON."""
        sent = self._headers | ({"Content-Type": "application/json"} if raw is not None else {}) | dict(headers or {})
        response = await self._session.request(method, self.base + path, json=json, data=raw, headers=sent)
        return Answer(response.status_code or 0, response.headers, response.json() if response.content else {})

    async def download(self, path: str) -> niquests.Response:
        return await self._session.get(self.base + path, headers=self._headers)

    @asynccontextmanager
    async def streaming(self, path: str) -> AsyncGenerator[AsyncGenerator[bytes]]:
        response = await self._session.get(self.base + path, headers=self._headers, stream=True)
        try:
            yield await response.iter_content(65536)
        finally:
            await response.close()

    async def pay(self, phone: str, amount: Any = 500, *, key: str, **more: Any) -> Answer:
        return await self.call(
            "POST", "/v1/payments", {"amount": amount, "phone": phone} | more, headers={"Idempotency-Key": key}
        )

    async def settled(self, payment_id: str, status: str | None = None, patience: float = 15.0) -> dict[str, Any]:
        """Wait until a payment has ``status``, or has left ``pending``. Raises TimeoutError."""
        async with asyncio.timeout(patience):
            while True:
                found: dict[str, Any] = (await self.call("GET", f"/v1/payments/{payment_id}")).data
                if found["status"] == status or (status is None and found["status"] != "pending"):
                    return found
                await asyncio.sleep(0.02)


@asynccontextmanager
async def shop(
    gateway: Gateway,
    base: str,
    *,
    scopes: tuple[Scope, ...] | None = None,
    env: Env = "sandbox",
    webhook_url: str | None = None,
    is_configured: bool = True,
) -> AsyncGenerator[Api]:
    """Yield the client of a new merchant with a key, sandbox credentials and, with ``webhook_url``, an endpoint."""
    merchant = await gateway.merchants.create("Test shop", actor="test")
    rights = gateway.scopes.of_merchants if scopes is None else scopes
    _, secret = await gateway.api_keys.create(merchant.merchant_id, name="test", scopes=rights, env=env, actor="test")
    api = Api(base, secret.reveal())
    try:
        if is_configured:
            (await api.call("PUT", "/v1/merchant/providers", SANDBOX)).data  # noqa: B018 - raises when refused
        if webhook_url is not None:
            (await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": webhook_url})).data  # noqa: B018
        yield api
    finally:
        await api.close()
