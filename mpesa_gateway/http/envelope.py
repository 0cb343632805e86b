"""The envelope of every response."""

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from mpesa_gateway.errors import Problem
from mpesa_gateway.http.fields import No, Yes

T = TypeVar("T")


class Success(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One object."""

    success: Yes = True
    data: T


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Position of a page. ``total`` is present only with ``?count=true``, and ``total_amount`` for money."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"limit": 50, "has_more": False, "next_cursor": None}

    limit: int
    has_more: bool
    next_cursor: str | None
    total: int | None = None
    total_amount: str | None = None


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of a list, newest first."""

    success: Yes = True
    data: list[T]
    meta: Meta


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """The object was deleted."""

    deleted: Yes = True


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of a failed request."""

    success: No = False
    errors: list[Problem]
    request_id: str
