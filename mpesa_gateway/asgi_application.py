"""The ASGI application of a gateway, with its layers."""

from typing import Any, Protocol, cast

import structlog
from litestar import Litestar

from mpesa_gateway.asgi_types import Message, Receive, Send
from mpesa_gateway.client_ip import CLIENT, client_address
from mpesa_gateway.errors import NOT_STARTED, ServiceUnavailable
from mpesa_gateway.http.admission import AdmissionControl
from mpesa_gateway.http.application import build_app
from mpesa_gateway.http.errors import refuse
from mpesa_gateway.http.load_shedding import LoadShedder, find_priority_paths, keyless_limits
from mpesa_gateway.http.request_guard import RequestGuard
from mpesa_gateway.http.request_id import RequestIds
from mpesa_gateway.http.templating import REQUESTED_PATH, WHOLE_SITE
from mpesa_gateway.http.upgrade import CloseAfterUpgrade
from mpesa_gateway.logs import trace
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.audit import acting_from

log = structlog.get_logger(__name__)


class ServedGateway(Runtime, Protocol):
    """A gateway whose lifespan the server controls."""

    plugins: tuple[Plugin, ...]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class GatewayApplication:
    """Assigns request ids, works under any mount path, rejects requests before the start."""

    def __init__(self, gateway: ServedGateway) -> None:
        self._gateway = gateway
        self._app = RequestIds(
            self._handle_when_started, gateway.ids, gateway.metrics.get(KernelMetrics), gateway.tracing
        )
        self._inside: Any = None
        self._gate: LoadShedder | None = None
        self._access: AdmissionControl | None = None
        self._litestar: Litestar | None = None

    @property
    def litestar(self) -> Litestar:
        if self._litestar is None:
            gateway = self._gateway
            routes = [route for plugin in gateway.plugins for route in plugin.routes]
            return self.use_application(
                build_app(routes, gateway.scopes, max_body_bytes=gateway.config.http.max_body_bytes)
            )
        return self._litestar

    def use_application(self, litestar: Litestar) -> Litestar:
        gateway = self._gateway
        litestar.state.gateway = gateway
        self._litestar = litestar
        inside, http = cast(Any, litestar), gateway.config.http
        self._gate = LoadShedder(
            inside, http, priority=find_priority_paths(litestar), is_draining=lambda: gateway.is_draining
        )
        pages = LoadShedder(
            inside, keyless_limits(http), priority=lambda _: False, is_draining=lambda: gateway.is_draining
        )
        self._access = AdmissionControl(gateway, litestar, self._gate, pages)
        self._inside = RequestGuard(self._access, http.body_timeout)
        for plugin in gateway.plugins:
            if plugin.front is not None:
                self._inside = plugin.front(gateway, self._inside)
        self._inside = CloseAfterUpgrade(self._inside)
        return litestar

    def release(self) -> Litestar | None:
        released, self._litestar, self._gate, self._inside = self._litestar, None, None, None
        self._access = None
        if released is not None:
            released.state.gateway = None
        return released

    def build(self) -> None:
        _ = self.litestar

    @property
    def load_shedder(self) -> LoadShedder:
        _ = self.litestar
        return cast(LoadShedder, self._gate)

    @property
    def access(self) -> AdmissionControl:
        _ = self.litestar
        return cast(AdmissionControl, self._access)

    @property
    def current_load_shedder(self) -> LoadShedder | None:
        return self._gate

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        inner = dict(scope)
        inner["path"], inner["root_path"] = _path_below_mount(scope), ""
        inner[REQUESTED_PATH] = inner["path"]
        inner[WHOLE_SITE] = not _is_below_mount(scope)
        inner[CLIENT] = self._client(scope)
        token = acting_from.set(inner[CLIENT])
        try:
            await self._app(inner, receive, send)
        finally:
            acting_from.reset(token)

    async def _handle_when_started(self, scope: Message, receive: Receive, send: Send) -> None:
        _ = self.litestar
        if scope["type"] == "http" and not self._gateway.is_running:
            await refuse(send, ServiceUnavailable(NOT_STARTED, retry_after=5))
            return
        await self._inside(scope, receive, send)

    def _client(self, scope: Message) -> str:
        peer = scope.get("client")
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return client_address(peer[0] if peer else None, forwarded, self._gateway.trusted_proxies)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.build()
            await self._gateway.start()
        except Exception as problem:  # noqa: BLE001 - reported to the server
            log.error("start_failed", exception=trace(problem))
            await send({"type": "lifespan.startup.failed", "message": str(problem)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._gateway.stop()
        await send({"type": "lifespan.shutdown.complete"})


def _path_below_mount(scope: Message) -> str:
    path, root = str(scope["path"]), scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    # Litestar's mounts append a slash; relative links need the requested path.
    raw = scope.get("raw_path")
    if raw and path.endswith("/") and not raw.endswith(b"/"):
        path = path[:-1]
    return path or "/"


def _is_below_mount(scope: Message) -> bool:
    # Some hosts set no root_path, but the request line has the whole path.
    raw = str((scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1"))
    return bool(scope.get("root_path")) or (scope["path"] in {"", "/"} and raw not in {"", "/"})
