"""Filters of lists, declared as structs."""

import re
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler
from litestar.params import CookieParameter, HeaderParameter

from mpesa_gateway.http.validation import read_query

Q = TypeVar("Q", bound=msgspec.Struct)

Moment = Annotated[datetime, msgspec.Meta(tz=True)]

Limit = Annotated[int, msgspec.Meta(ge=1, le=100)]


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of every list. ``count`` requests ``meta.total``."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


def read_params(request: Request[Any, Any, Any], kind: type[Q]) -> Q:
    """Raises InvalidFields."""
    values: dict[str, list[str]] = {}
    for name, text in request.query_params.multi_items():
        values.setdefault(name, []).append(text)
    return read_query(values, kind)


def query_dependency(kind: type[Q]) -> Provide:
    async def provide(request: Request[Any, Any, Any]) -> Any:
        return read_params(request, kind)

    provide.query_type = kind  # type: ignore[attr-defined]  # the OpenAPI document reads it
    return Provide(provide)


def query_types(handler: BaseRouteHandler) -> list[type[msgspec.Struct]]:
    given = (getattr(each.dependency, "query_type", None) for each in handler.resolve_dependencies().values())
    return [kind for kind in given if kind is not None]


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rejects any parameter, so that an ignored one is not mistaken for a filter."""


def reads_query(handler: BaseRouteHandler) -> bool:
    """Return True if a route has filters or query parameters.

    A route that reads ``request.query_params`` declares ``reads_query=True``.
    """
    given = handler.resolve_dependencies()
    if handler.opt.get("reads_query") or query_types(handler):
        return True
    paths = {name for path in handler.paths for name in _IN_PATH.findall(path)}
    return any(
        name not in paths | _NOT_QUERY | set(given)
        and not isinstance(part.kwarg_definition, HeaderParameter | CookieParameter)
        for name, part in handler.parsed_fn_signature.parameters.items()
    )


def refuse_query(request: Request[Any, Any, Any]) -> None:
    """Raises InvalidFields."""
    if request.scope["query_string"]:
        read_params(request, NoQuery)


_NOT_QUERY = frozenset({"body", "caller", "cookies", "data", "headers", "request", "scope", "socket", "state"})

_IN_PATH = re.compile(r"\{(\w+)(?::\w+)?\}")
