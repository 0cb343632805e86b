"""The Litestar application: authorisation first, then decoding."""

from collections.abc import Iterable
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.di import Provide

from mpesa_gateway.errors import NotFound, UnsupportedMediaType
from mpesa_gateway.http import admin, health, templating
from mpesa_gateway.http.auth import PRIORITY, PUBLIC, authorize, mark_scopes, provide_caller
from mpesa_gateway.http.errors import handlers
from mpesa_gateway.http.openapi import openapi_config
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.security.scopes import Scopes


class GatewayRequest(Request[Any, Any, Any]):
    """A request whose JSON is decoded into the route's type, without floats."""

    async def json(self) -> Any:
        """Raises InvalidFields."""
        wanted = self.route_handler.parsed_fn_signature.parameters.get("data")
        if wanted is not None and isinstance(wanted.annotation, type) and issubclass(wanted.annotation, msgspec.Struct):
            return read_body(await self.body(), wanted.annotation)
        return await super().json()


async def before_request(request: Request[Any, Any, Any]) -> None:
    if request.scope["path_template"] == "/schema/{path}":
        raise NotFound("no such route: the document is /schema/openapi.json, its page /schema")
    await authorize(request)
    _refuse_other_media(request)


def _refuse_other_media(request: Request[Any, Any, Any]) -> None:
    """Compressed bodies could expand to any size, so only priority routes accept them."""
    if request.method not in {"POST", "PUT", "PATCH"} or request.route_handler.opt.get(PRIORITY):
        return
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in {"", "identity"}:
        raise UnsupportedMediaType(f"send the body without Content-Encoding: {coding[:40]!r} is not supported")
    if request.route_handler.opt.get(PUBLIC):
        return
    media = request.headers.get("content-type")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body and (media or "application/json").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send JSON, with Content-Type: application/json")


def build_app(routes: Iterable[Any], scopes: Scopes, *, max_body_bytes: int) -> Litestar:
    """Return the application; the caller sets ``state.gateway``."""
    own: list[Any] = [*health.routes, *admin.routes, *templating.routes]
    app = Litestar(
        route_handlers=[*own, *routes],
        dependencies={
            "caller": Provide(provide_caller),
            "services": Provide(lambda: app.state.gateway.services, sync_to_thread=False),
            "gateway": Provide(lambda: app.state.gateway, sync_to_thread=False),
        },
        exception_handlers=handlers(),
        before_request=before_request,
        request_class=GatewayRequest,
        request_max_body_size=max_body_bytes,
        openapi_config=openapi_config(),
        logging_config=None,
        debug=False,
    )
    mark_scopes(app, scopes)
    return app
