"""Authentication by API key, and the scopes of routes."""

from typing import Any, cast

import structlog
from litestar import Litestar, Request
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from mpesa_gateway.client_ip import CLIENT, client_address, client_network
from mpesa_gateway.errors import InsufficientScope, InvalidKey, RateLimited, TooManyFailures
from mpesa_gateway.http.query import reads_query, refuse_query
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.api_keys import presented_key
from mpesa_gateway.security.rate_limits import AUTH
from mpesa_gateway.security.scopes import Caller, Scope, Scopes

PUBLIC = "public"
"""``public=True`` on a route: no API key, no ``caller``."""

PRIORITY = "priority"
"""``priority=True`` on a route: admitted under any load."""

PROBE = "probe"
"""``probe=True`` on a route: polled by monitoring, so delays stay short."""

BODY_BYTES = "body_bytes"
"""``body_bytes=4096`` on a public route: limit for unknown callers."""

_SCOPE = "mpesa_gateway_scope"
_TAKES_QUERY = "mpesa_gateway_takes_query"


class RouteError(Exception):
    """A route declares neither a scope nor ``public``."""


def mark_scopes(app: Litestar, declared: Scopes) -> None:
    """Store on each route the scope of its ``caller``.

    Raises RouteError for a route without a scope, or with an undeclared one.
    """
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            caller = handler.parsed_fn_signature.parameters.get("caller")
            if caller is not None:
                scope = next((item for item in caller.metadata if isinstance(item, Scope)), None)
                if scope is None:
                    raise RouteError(f"{handler}: annotate `caller` with a scope, such as `caller: PaymentsRead`")
                if scope not in declared.all:
                    raise RouteError(
                        f"{handler}: no enabled plugin declares the scope `{scope}`: list it in the `scopes` of the "
                        "plugin with the route, or let that plugin require the one that declares it"
                    )
                handler.opt[_SCOPE] = scope
                handler.opt[_TAKES_QUERY] = reads_query(handler)
            elif not handler.opt.get(PUBLIC) and not _is_own(handler):
                raise RouteError(f"{handler}: take a `caller: PaymentsRead` (or another scope), or set `public=True`")


def scope_of(handler: BaseRouteHandler) -> Scope | None:
    """Return the required scope, None for a public route."""
    return cast("Scope | None", handler.opt.get(_SCOPE))


def _is_own(handler: HTTPRouteHandler) -> bool:
    return handler.http_methods == {"OPTIONS"} or getattr(handler.fn, "__module__", "").startswith("litestar.")


async def authorize(request: Request[Any, Any, Any]) -> None:
    """Authorise the caller before the body is read.

    Raises InvalidKey, InsufficientScope, TooManyFailures, RateLimited, or InvalidFields for an unused parameter.
    """
    if (needed := scope_of(request.route_handler)) is not None:
        request.state.caller = await _authenticate(request, needed)
        if not request.route_handler.opt[_TAKES_QUERY]:
            refuse_query(request)


async def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    return cast(Caller, request.state.caller)


async def _authenticate(request: Request[Any, Any, Any], needed: Scope) -> Caller:
    runtime: Runtime = request.app.state.gateway
    try:
        caller = await runtime.api_keys.authenticate(presented_key(request.scope["headers"]))
    except InvalidKey:
        await count_failure(runtime, address_of(request), _request_info(request))
        raise
    structlog.contextvars.bind_contextvars(merchant_id=caller.merchant_id, key_id=caller.key_id)
    caller_detail: dict[str, Any] = {
        "merchant_id": caller.merchant_id,
        "actor": caller.actor,
        "subject_id": caller.key_id,
        "env": caller.env,
    }
    try:
        await runtime.limits.count_call(caller.key_id)
    except RateLimited:
        await runtime.audit.observe("key.limited", **caller_detail, detail=_request_info(request))
        raise
    if needed.name not in caller.scopes:
        await runtime.audit.observe(
            "scope.denied", **caller_detail, detail=_request_info(request) | {"scope": needed.name}
        )
        raise InsufficientScope(f"this API key lacks the scope {needed}: use a key that has it")
    return caller


async def count_failure(runtime: Runtime, address: str, request_info: dict[str, str]) -> None:
    """Record and count an invalid key. Raises TooManyFailures above the limit."""
    await runtime.audit.observe("auth.failed", merchant_id=None, actor="unknown", detail=request_info)
    try:
        await runtime.limits.count_failure(AUTH, client_network(address))
    except TooManyFailures:
        await runtime.audit.observe("auth.limited", merchant_id=None, actor="unknown", detail=request_info)
        raise


def _request_info(request: Request[Any, Any, Any]) -> dict[str, str]:
    return {"method": str(request.method), "route": str(request.scope.get("path_template", ""))}


def address_of(request: Request[Any, Any, Any]) -> str:
    """Return the client's address behind trusted proxies."""
    known: str | None = cast("dict[str, Any]", request.scope).get(CLIENT)
    if known is not None:
        return known
    client = request.scope.get("client")
    return client_address(
        client[0] if client else None,
        request.headers.getall("x-forwarded-for", []),
        request.app.state.gateway.trusted_proxies,
    )
