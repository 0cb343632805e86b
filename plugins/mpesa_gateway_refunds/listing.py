"""Finds refunds: one by its id, or a list by any filters, newest first."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any

from mpesa_gateway.cursors import decode_position
from mpesa_gateway.db.asking import Asking
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.errors import NotFound
from mpesa_gateway.http.csv import keyset_pages
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.schemas import RefundFilters, RefundQuery, RefundView
from mpesa_gateway_refunds.tables import RefundRow
from mpesa_gateway_refunds.views import exported, view


async def find_refund(db: Database, merchant_id: str, env: Env, refund_id: str) -> Found:
    """Return a refund of this merchant in ``env``. Raises NotFound."""
    row: Found | None = await db.run(
        RefundRow.select()
        .where(RefundRow.merchant_id == merchant_id, RefundRow.env == env, RefundRow.refund_id == refund_id)
        .first()
    )
    if row is None:
        raise NotFound("there is no such refund")
    return row


async def list_refunds(reads: Asking, merchant_id: str, env: Env, filters: RefundQuery) -> Page[RefundView]:
    """Return one page, newest first. Raises Invalid for a bad cursor."""
    after = decode_position(filters.cursor, env) if filters.cursor else None
    chosen = _chosen(merchant_id, env, filters)
    rows = await _read(reads, chosen, after, filters.limit + 1)
    total = await reads.fetchval(tables.COUNT, *chosen) if filters.count else None
    return page_of(rows, filters.limit, env=env, view=view, position=_position, total=total)


def export_refunds(
    reads: Asking, merchant_id: str, env: Env, filters: RefundFilters
) -> AsyncGenerator[list[Sequence[Any]]]:
    """Return all refunds that pass the filters, newest first, in pages."""
    chosen = _chosen(merchant_id, env, filters)
    return keyset_pages(lambda after, limit: _read(reads, chosen, after, limit), _position, exported)


async def _read(reads: Asking, chosen: tuple[Any, ...], after: tuple[datetime, str] | None, limit: int) -> list[Row]:
    return await reads.fetch(tables.PAGE, *chosen, *(after or (None, "")), limit)


def _chosen(merchant_id: str, env: Env, filters: RefundFilters) -> tuple[Any, ...]:
    return (
        merchant_id,
        env,
        filters.payment_id,
        filters.status,
        filters.since,
        filters.until,
        filters.needs_attention,
    )


def _position(row: Found) -> tuple[datetime, str]:
    return row["created_at"], row["refund_id"]
