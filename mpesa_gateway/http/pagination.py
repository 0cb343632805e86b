"""A page of a long list as the API answers it."""

from typing import TypeVar

from mpesa_gateway.db.keyset import KeysetPage
from mpesa_gateway.http.envelope import Meta, Page

T = TypeVar("T")


def page_of(found: KeysetPage[T]) -> Page[T]:
    """Return the page with its place in the list."""
    return Page(data=list(found.rows), meta=meta_of(found))


def meta_of(found: KeysetPage[T]) -> Meta:
    """Return where a page is in its list."""
    return Meta(
        limit=found.limit,
        has_more=found.next_cursor is not None,
        next_cursor=found.next_cursor,
        total=found.total,
    )
