"""An HTTP server in a worker process, for its metrics only."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn

from mpesa_gateway.asgi_types import Message, Receive, Send
from mpesa_gateway.client_ip import Network, client_address
from mpesa_gateway.commands.serve import listening
from mpesa_gateway.errors import ApiError, NotFound
from mpesa_gateway.http.errors import refuse
from mpesa_gateway.http.protocol import ServerConfig
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_metrics.access import MetricsAccess
from mpesa_gateway_metrics.exposition import CONTENT_TYPE, Exposition
from mpesa_gateway_metrics.settings import MetricsSettings

log = structlog.get_logger(__name__)


@asynccontextmanager
async def serve_in_worker(gateway: Runtime) -> AsyncGenerator[None]:
    """Serve ``GET /metrics`` at ``metrics.worker_port`` for the length of the block, if set.

    Raises Failed if the port is in use.
    """
    settings = gateway.settings(MetricsSettings)
    if settings.worker_port is None:
        yield
        return
    with listening(settings.worker_host, settings.worker_port) as at:
        metrics = _Metrics(gateway.port(MetricsAccess), gateway.port(Exposition), gateway.trusted_proxies)
        server = _Server(
            ServerConfig(metrics, gateway.config.http, lifespan="off", proxy_headers=False, timeout_graceful_shutdown=5)
        )
        task = asyncio.create_task(server.serve([at]))
        log.info("metrics_served", host=settings.worker_host, port=at.getsockname()[1])
        try:
            yield
        finally:
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Metrics:
    def __init__(self, admission: MetricsAccess, exposition: Exposition, proxies: Sequence[Network]) -> None:
        self._admission = admission
        self._exposition = exposition
        self._proxies = proxies

    async def __call__(self, scope: Message, _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            text = await self._text(scope)
        except ApiError as refusal:
            await refuse(send, refusal)
            return
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def _text(self, scope: Message) -> bytes:
        if scope["method"] != "GET" or scope["path"] != "/metrics":
            raise NotFound("there is nothing at this address: a worker has /metrics only")
        peer = scope.get("client")
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        client = client_address(peer[0] if peer else None, forwarded, self._proxies)
        await self._admission.admit(client, given.get(b"authorization", ""))
        return await self._exposition.text()
