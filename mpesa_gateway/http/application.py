"""The Litestar application, and what each request to it meets: who calls, then what they send."""

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
    """A request whose JSON is read straight into the type that the route declares, numbers never through a float."""

    async def json(self) -> Any:
        """The body as the route's ``data`` type. Raises Invalid with every bad field."""
        wanted = self.route_handler.parsed_fn_signature.parameters.get("data")
        if wanted is not None and isinstance(wanted.annotation, type) and issubclass(wanted.annotation, msgspec.Struct):
            return read_body(await self.body(), wanted.annotation)
        return await super().json()


async def before_request(request: Request[Any, Any, Any]) -> None:
    """Who calls, then what they send: the body is read for nobody who may not call."""
    if request.scope["path_template"] == "/schema/{path}":
        raise NotFound("there is nothing at this address: the document is /schema/openapi.json, its page /schema")
    await authorize(request)
    _refuse_other_media(request)


def _refuse_other_media(request: Request[Any, Any, Any]) -> None:
    """JSON is the only body that the API takes. Public routes (callbacks) take what their caller calls it.

    Nothing but a callback is taken compressed: a few bytes could become any number.
    """
    if request.method not in {"POST", "PUT", "PATCH"} or request.route_handler.opt.get(PRIORITY):
        return
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in {"", "identity"}:
        raise UnsupportedMediaType(f"send the body as it is, without Content-Encoding: {coding[:40]!r} is not taken")
    if request.route_handler.opt.get(PUBLIC):
        return
    media = request.headers.get("content-type")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body and (media or "application/json").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send JSON, with Content-Type: application/json")


def build_app(routes: Iterable[Any], scopes: Scopes, *, max_body_bytes: int) -> Litestar:
    """The Litestar application: the kernel's routes and these of the plugins, which need these scopes.

    It depends on nothing else of a gateway: it serves the one in its ``state.gateway``, which the caller sets.
    """
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
