"""Pages of keyset queries in the API's envelope."""

from typing import TypeVar

from mpesa_gateway.db.keyset import KeysetPage
from mpesa_gateway.http.envelope import Meta, Page

T = TypeVar("T")


def page_of(found: KeysetPage[T]) -> Page[T]:
    return Page(data=list(found.rows), meta=meta_of(found))


def meta_of(found: KeysetPage[T]) -> Meta:
    return Meta(
        limit=found.limit,
        has_more=found.next_cursor is not None,
        next_cursor=found.next_cursor,
        total=found.total,
    )
