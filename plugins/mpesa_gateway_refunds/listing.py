"""Queries for one refund or a list, newest first."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.db.keyset import Conditions, KeysetList
from mpesa_gateway.errors import require_found
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_refunds.schemas import RefundFilters, RefundQuery, RefundView
from mpesa_gateway_refunds.tables import RefundRow
from mpesa_gateway_refunds.views import exported, view

REFUNDS = KeysetList(table="refund", key="refund_id", prefix="rfd")


async def find_refund(db: Database, merchant_id: str, env: Env, refund_id: str) -> Found:
    """Raises NotFound."""
    row: Found = require_found(
        await db.run(
            RefundRow.select()
            .where(RefundRow.merchant_id == merchant_id, RefundRow.env == env, RefundRow.refund_id == refund_id)
            .first()
        ),
        "there is no such refund",
    )
    return row


async def list_refunds(db: Database, merchant_id: str, env: Env, filters: RefundQuery) -> Page[RefundView]:
    """Raises InvalidFields for a bad cursor."""
    found = _conditions(merchant_id, env, filters)
    page = await REFUNDS.page(db, found, filters.cursor, filters.limit, count=filters.count)
    return page_of(page.map(view))


def export_refunds(
    db: Database, merchant_id: str, env: Env, filters: RefundFilters
) -> AsyncGenerator[list[Sequence[Any]]]:
    return REFUNDS.export(db, _conditions(merchant_id, env, filters), exported)


def _conditions(merchant_id: str, env: Env, filters: RefundFilters) -> Conditions:
    found = Conditions(env, merchant_id, filters.since, filters.until)
    found.equal(payment_id=filters.payment_id, transaction_id=filters.transaction_id, status=filters.status)
    found.equal(shortcode=filters.shortcode)
    if filters.needs_attention is not None:
        found.add(f"attention IS {'NOT ' if filters.needs_attention else ''}NULL")
    return found
