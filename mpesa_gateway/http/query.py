"""The filters of a list: declared as a struct, read from the query string, shown in the OpenAPI document."""

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
"""A time in a body: RFC 3339, with its zone."""

Limit = Annotated[int, msgspec.Meta(ge=1, le=100)]


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every list takes. ``count`` asks for ``meta.total``."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


def read_params(request: Request[Any, Any, Any], kind: type[Q]) -> Q:
    """The query string of a request as a struct. Raises Invalid."""
    values: dict[str, list[str]] = {}
    for name, text in request.query_params.multi_items():
        values.setdefault(name, []).append(text)
    return read_query(values, kind)


def reads(kind: type[Q]) -> Provide:
    """Make the dependency that reads the query string into ``kind``, for a route's ``filters``."""

    async def provide(request: Request[Any, Any, Any]) -> Any:
        return read_params(request, kind)

    provide.query_type = kind  # type: ignore[attr-defined]  # read again when the OpenAPI document is drawn
    return Provide(provide)


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a route takes that declares no filters: nothing, so that no parameter is thought to have had an effect."""


def reads_query(handler: BaseRouteHandler) -> bool:
    """Whether a route takes parameters: by filters of ours, or by parameters of its own signature as Litestar has them.

    A route that reads ``request.query_params`` says ``reads_query=True`` in its decorator.
    """
    given = handler.resolve_dependencies()
    if handler.opt.get("reads_query") or any(hasattr(each.dependency, "query_type") for each in given.values()):
        return True
    paths = {name for path in handler.paths for name in _IN_PATH.findall(path)}
    return any(
        name not in paths | _NOT_QUERY | set(given)
        and not isinstance(part.kwarg_definition, HeaderParameter | CookieParameter)
        for name, part in handler.parsed_fn_signature.parameters.items()
    )


def refuse_query(request: Request[Any, Any, Any]) -> None:
    """Raise Invalid with one problem for each parameter that was sent to a route which takes none."""
    if request.scope["query_string"]:
        read_params(request, NoQuery)


_NOT_QUERY = frozenset({"body", "caller", "cookies", "data", "headers", "request", "scope", "socket", "state"})
"""Names of parameters that Litestar fills from elsewhere."""

_IN_PATH = re.compile(r"\{(\w+)(?::\w+)?\}")
