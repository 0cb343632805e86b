"""Pages of long lists: each starts where the last one ended, however much has been added meanwhile."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from mpesa_gateway.cursors import encode_position
from mpesa_gateway.env import Env
from mpesa_gateway.http.envelope import Meta, Page

R = TypeVar("R")
T = TypeVar("T")


def page_of(
    rows: Sequence[R],
    limit: int,
    *,
    env: Env,
    view: Callable[[R], T],
    position: Callable[[R], tuple[datetime, str]],
    total: int | None = None,
) -> Page[T]:
    """A page of ``env`` from one row more than its limit: the extra row only tells that there is more."""
    shown = rows[:limit]
    has_more = len(rows) > limit
    cursor = encode_position(*position(shown[-1]), env) if has_more else None
    return Page(
        data=[view(row) for row in shown], meta=Meta(limit=limit, has_more=has_more, next_cursor=cursor, total=total)
    )
