"""Who is calling: the X-API-Key header, checked against the scope that the route's signature names."""

from typing import Any, cast

import structlog
from litestar import Litestar, Request
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from mpesa_gateway.client_ip import CLIENT, client_address, neighbourhood
from mpesa_gateway.errors import InsufficientScope, InvalidKey, RateLimited, TooManyFailures
from mpesa_gateway.http.query import reads_query, refuse_query
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.rate_limits import AUTH
from mpesa_gateway.security.scopes import Caller, Scope, Scopes

PUBLIC = "public"
"""``public=True`` in a route's decorator: it takes no API key (and has no ``caller``)."""

PRIORITY = "priority"
"""``priority=True`` in a route's decorator: it is let in however busy the process is. For what others cannot wait with:
Safaricom's callbacks, health checks."""

PROBE = "probe"
"""``probe=True`` in a route's decorator: machines that watch us ask it, and are delayed for a moment at most."""

BODY_BYTES = "body_bytes"
"""``body_bytes=4096`` in a public route's decorator: how large a body it takes from callers who are not known."""

_SCOPE = "mpesa_gateway_scope"
_TAKES_QUERY = "mpesa_gateway_takes_query"


class RouteError(Exception):
    """A route says neither which scope its caller needs nor that it is public."""


def mark_scopes(app: Litestar, declared: Scopes) -> None:
    """Note on each route which scope its ``caller`` needs.

    Raises RouteError for a route that names no scope, or one that no enabled plugin declares.
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
                        "plugin that brings the route, or let that plugin require the one that declares it"
                    )
                handler.opt[_SCOPE] = scope
                handler.opt[_TAKES_QUERY] = reads_query(handler)
            elif not handler.opt.get(PUBLIC) and not _is_own(handler):
                raise RouteError(f"{handler}: take a `caller: PaymentsRead` (or another scope), or say `public=True`")


def scope_of(handler: BaseRouteHandler) -> Scope | None:
    """The scope that a route's caller needs, None for a public one."""
    return cast("Scope | None", handler.opt.get(_SCOPE))


def _is_own(handler: HTTPRouteHandler) -> bool:
    """Litestar's own routes: the OpenAPI document, and the OPTIONS answers it adds to every path."""
    return handler.http_methods == {"OPTIONS"} or getattr(handler.fn, "__module__", "").startswith("litestar.")


async def authorize(request: Request[Any, Any, Any]) -> None:
    """Let in who may call this route, before anything of the request is read.

    Raises InvalidKey, InsufficientScope, TooManyFailures, RateLimited, or Invalid for a parameter that nothing reads.
    """
    if (needed := scope_of(request.route_handler)) is not None:
        request.state.caller = await _authenticate(request, needed)
        if not request.route_handler.opt[_TAKES_QUERY]:
            refuse_query(request)


async def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    """The caller that was let in."""
    return cast(Caller, request.state.caller)


async def _authenticate(request: Request[Any, Any, Any], needed: Scope) -> Caller:
    runtime: Runtime = request.app.state.gateway
    try:
        caller = await runtime.api_keys.authenticate(request.headers.get("x-api-key"))
    except InvalidKey:
        await count_failure(runtime, address_of(request), _asked(request))
        raise
    structlog.contextvars.bind_contextvars(merchant_id=caller.merchant_id, key_id=caller.key_id)
    who: dict[str, Any] = {
        "merchant_id": caller.merchant_id,
        "actor": caller.actor,
        "subject_id": caller.key_id,
        "env": caller.env,
    }
    try:
        await runtime.limits.called(caller.key_id)
    except RateLimited:
        await runtime.audit.observe("key.limited", **who, detail=_asked(request))
        raise
    if needed.name not in caller.scopes:
        await runtime.audit.observe("scope.denied", **who, detail=_asked(request) | {"scope": needed.name})
        raise InsufficientScope(f"this API key lacks the scope {needed}: use a key that has it")
    return caller


async def count_failure(runtime: Runtime, address: str, asked: dict[str, str]) -> None:
    """Put a wrong key on record, and count it for its address. Raises TooManyFailures beyond the limit."""
    await runtime.audit.observe("auth.failed", merchant_id=None, actor="unknown", detail=asked)
    try:
        await runtime.limits.failed(AUTH, neighbourhood(address))
    except TooManyFailures:
        await runtime.audit.observe("auth.limited", merchant_id=None, actor="unknown", detail=asked)
        raise


def _asked(request: Request[Any, Any, Any]) -> dict[str, str]:
    """What was asked for, by its route: no ids, no query."""
    return {"method": str(request.method), "route": str(request.scope.get("path_template", ""))}


def address_of(request: Request[Any, Any, Any]) -> str:
    """The address of the client behind our own proxies."""
    known: str | None = cast("dict[str, Any]", request.scope).get(CLIENT)
    if known is not None:
        return known
    client = request.scope.get("client")
    return client_address(
        client[0] if client else None,
        request.headers.getall("x-forwarded-for", []),
        request.app.state.gateway.trusted_proxies,
    )
