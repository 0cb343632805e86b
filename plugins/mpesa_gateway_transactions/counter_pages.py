"""The counter, where a cashier takes money for an order. The page updates itself and keeps what is typed."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec

from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.ids import Ids
from mpesa_gateway.ops_contract import PageRequest, Redirect, Rendered
from mpesa_gateway.phone import mask_phones
from mpesa_gateway_transactions.allocation_pages import amount_text, explain_first
from mpesa_gateway_transactions.list_pages import LIST
from mpesa_gateway_transactions.listing import owner_of
from mpesa_gateway_transactions.manual import AlreadyAllocated
from mpesa_gateway_transactions.operator_service import (
    OperatorTransactionFilters,
    TransactionOperatorService,
    is_open,
)
from mpesa_gateway_transactions.schemas import SHORTEST_NOTE, Allocate
from mpesa_gateway_transactions.service import TransactionService

COUNTER = f"{LIST}/counter"
CHANGES = f"{COUNTER}/changes"

_AT_COUNTER = 12
"""Rows."""
_MOST_WATCHED = 60
_RECENT = timedelta(hours=12)


class _CounterQuery(msgspec.Struct, frozen=True, kw_only=True):
    shortcode: str | None = None
    merchant: str | None = None
    cursor: str | None = None
    busy: bool = False
    """True while an order is typed: new rows wait, because they would move the field."""


def _filters(visit: PageRequest, query: _CounterQuery, shortcode: str) -> OperatorTransactionFilters:
    since = visit.gateway.clock.now() - _RECENT
    return OperatorTransactionFilters(
        merchant=query.merchant, shortcode=shortcode, since=since, cursor=query.cursor, open=True
    )


def _watched(visit: PageRequest, shortcode: str, cursor: str | None) -> str:
    return urlencode({"shortcode": shortcode, "cursor": cursor or "", "env": visit.env})


async def counter(visit: PageRequest) -> Rendered:
    """Show the newest unallocated money of one shortcode."""
    query, service = visit.read_query(_CounterQuery), visit.gateway.port(TransactionOperatorService)
    offered: list[str] = []
    if visit.merchant_id is not None:
        offered = await service.shortcodes(visit.merchant_id, visit.env)
    shortcode = visit.text("shortcode") or query.shortcode or (offered[0] if offered else "")
    page = (
        await service.page(visit.env, _filters(visit, query, shortcode), _AT_COUNTER, within=visit.merchant_id)
        if shortcode
        else None
    )
    all_open = {"open": "true", "shortcode": shortcode}
    return Rendered(
        "counter.html",
        {
            "rows": page.rows if page else (),
            "is_cut": page is not None and page.next_cursor is not None,
            "shortcode": shortcode,
            "offered": offered,
            "watched": _watched(visit, shortcode, page.first) if page else None,
            "all_open": urlencode(all_open),
            "hours": _RECENT // timedelta(hours=1),
            "fields": {name: visit.text(name) for name in ("transaction_id", "order")},
        },
    )


async def changes(visit: PageRequest) -> Rendered:
    """Show the money that arrived since ``cursor``, and which of the shown transactions are no longer open."""
    shown = visit.query.get("transaction_id", ())
    query = PageRequest(
        gateway=visit.gateway,
        visitor=visit.visitor,
        values=visit.values,
        query={name: texts for name, texts in visit.query.items() if name != "transaction_id"},
        env=visit.env,
        merchant_id=visit.merchant_id,
    ).read_query(_CounterQuery)
    service, shortcode = visit.gateway.port(TransactionOperatorService), query.shortcode or ""
    filters = _filters(visit, query, shortcode)
    count = await service.count_newer(visit.env, filters, within=visit.merchant_id)
    cursor, rows = query.cursor, list[Row]()
    if count and not query.busy:
        newest = await service.page(
            visit.env, msgspec.structs.replace(filters, cursor=None), _AT_COUNTER, within=visit.merchant_id
        )
        cursor, rows = newest.first, list(newest.rows[:count])
    return Rendered(
        "counter_changes.html",
        {
            "shortcode": shortcode,
            "waiting": count if query.busy else 0,
            "watched": _watched(visit, shortcode, cursor),
            "here": urlencode({"shortcode": shortcode}),
            "rows": rows,
            "taken_rows": await _taken(visit, shown),
            "fields": {"transaction_id": "", "order": ""},
        },
    )


async def _taken(visit: PageRequest, shown: Sequence[str]) -> list[Mapping[str, Any]]:
    ids = [one for one in shown[:_MOST_WATCHED] if Ids.has_form(one, "txn")]
    rows = await visit.gateway.port(TransactionOperatorService).find_all(ids) if ids else []
    seen = [row for row in rows if visit.merchant_id in {None, owner_of(row), row["owner_id"]}]
    return [{"row": row, "text": await _outcome(visit, row)} for row in seen if not is_open(row)]


async def _outcome(visit: PageRequest, row: Row) -> str:
    if visit.merchant_id not in {None, owner_of(row)}:
        return "this money belongs to another merchant."
    if row["subject_id"] is None:
        return "a refund of this money has begun: it pays no order."
    return await explain_first(visit, row["transaction_id"])


async def take(visit: PageRequest) -> Redirect:
    transaction_id, order = visit.text("transaction_id"), visit.text("order")
    if not order:
        raise InvalidFields.field_error("order", "enter the number of the order")
    note = f"Order {order}" if len(order) < SHORTEST_NOTE or order[0].isdigit() else order
    wanted = read_body(msgspec.json.encode({"note": note}), Allocate)
    to = f"{COUNTER}?{urlencode({'shortcode': visit.text('shortcode')})}"
    service = visit.gateway.port(TransactionOperatorService)
    try:
        await visit.gateway.port(TransactionService).allocate(
            visit.merchant_id, visit.env, transaction_id, wanted, actor=visit.visitor.actor, is_whole=True
        )
    except AlreadyAllocated:
        lost = await _outcome(visit, await service.get(transaction_id))
        return Redirect(to, f"Not done: {lost}", is_warning=True)
    row = await service.get(transaction_id)
    return Redirect(to, f"{amount_text(row['amount_cents'])} of {row['receipt']} taken for: {mask_phones(note)}.")
