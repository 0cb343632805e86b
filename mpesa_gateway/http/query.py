"""The filters of a list: declared as a struct, read from the query string, shown in the OpenAPI document."""

from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request
from litestar.di import Provide

from mpesa_gateway.http.reading import read_query

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
