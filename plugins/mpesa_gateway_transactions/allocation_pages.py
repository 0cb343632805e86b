"""Operators' pages of one transaction, and the counter, where a cashier takes money for an order."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.ids import Ids
from mpesa_gateway.local_time import format_near
from mpesa_gateway.ops_contract import PageRequest, Redirect, Rendered, TimelineEntry
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.list_pages import LIST
from mpesa_gateway_transactions.manual import AlreadyAllocated
from mpesa_gateway_transactions.operator_service import OperatorTransactionFilters, TransactionOperatorService, owner_of
from mpesa_gateway_transactions.schemas import SHORTEST_NOTE, Allocate
from mpesa_gateway_transactions.service import TransactionService

COUNTER = f"{LIST}/counter"
_AT_COUNTER = 12
"""Rows."""
_RECENT = timedelta(hours=12)


async def owner(gateway: Runtime, transaction_id: str) -> str | None:
    return owner_of(await gateway.port(TransactionOperatorService).get(transaction_id))


async def transaction(visit: PageRequest) -> Rendered:
    service, transaction_id = visit.gateway.port(TransactionOperatorService), visit.values["transaction_id"]
    row = await service.get(transaction_id)
    visit.require(row["env"])
    return Rendered(
        "transaction.html",
        {
            "row": row,
            "merchant": await visit.gateway.merchants.require(owner_of(row)),
            "witnesses": await service.witnesses(transaction_id),
            "first_at": Ids.time_of(transaction_id),
            "is_open": row["direction"] == "in" and row["subject_id"] is None,
        },
        title=f"Transaction {row['receipt']}",
    )


async def past(gateway: Runtime, transaction_id: str) -> Sequence[TimelineEntry]:
    service = gateway.port(TransactionOperatorService)
    row = await service.get(transaction_id)
    way = "Money in" if row["direction"] == "in" else "Money out"
    moments = [
        TimelineEntry(
            at=Ids.time_of(transaction_id), source=row["first_source"], state="recorded", text=f"{way}, first report"
        )
    ]
    moments += [
        TimelineEntry(
            at=one["seen_at"],
            source=one["source"],
            state="contradicted" if one["detail"] else "reported",
            text=one["detail"] or "Another report of the same money",
        )
        for one in await service.witnesses(transaction_id)
    ]
    if row["announced_at"] is not None:
        text = "transaction.received published"
        moments.append(TimelineEntry(at=row["announced_at"], source="transactions", state="announced", text=text))
    return [*moments, *(_decision(one) for one in await service.allocations(transaction_id))]


def _decision(one: Mapping[str, Any]) -> TimelineEntry:
    is_resolved, is_person = one["subject_kind"] == "resolved", ":" in one["by"]
    what = "Marked as dealt with" if is_resolved else f"To {one['subject_kind'].replace('_', ' ')} {one['subject_id']}"
    return TimelineEntry(
        at=one["at"],
        source="allocation" if is_person else f"allocation, rule {one['by']}",
        by=one["by"] if is_person else "",
        state="allocated",
        text=": ".join(part for part in (what, one["note"]) if part),
    )


# -- allocation -------------------------------------------------------------------------------------------------------


class _AllocateQuery(msgspec.Struct, frozen=True, kw_only=True):
    payment_id: str = ""


async def allocation(visit: PageRequest) -> Rendered:
    """Show the money, and the payment if one is chosen, before the decision."""
    row = await visit.gateway.port(TransactionOperatorService).get(visit.values["transaction_id"])
    visit.require(row["env"])
    payment_id = visit.text("payment_id") or visit.read_query(_AllocateQuery).payment_id.strip()
    return Rendered(
        "allocation.html",
        {
            "row": row,
            "payment_id": payment_id,
            "fields": {name: visit.text(name) for name in ("note", "confirm")},
            "is_open": row["direction"] == "in" and row["subject_id"] is None,
        },
    )


async def allocate(visit: PageRequest) -> Redirect:
    transaction_id, payment_id = visit.values["transaction_id"], visit.text("payment_id")
    row = await visit.gateway.port(TransactionOperatorService).get(transaction_id)
    visit.require(row["env"])
    if visit.text("confirm") != transaction_id:
        raise InvalidFields.field_error("confirm", "confirm: an allocation cannot be undone")
    page = f"{LIST}/{transaction_id}"
    lost = await _allocate(visit, transaction_id, payment_id or None, visit.text("note") or None)
    if lost:
        return Redirect(page, lost, is_warning=True)
    return Redirect(page, "Allocated to the payment." if payment_id else "Marked as dealt with.")


async def _allocate(visit: PageRequest, transaction_id: str, payment_id: str | None, note: str | None) -> str:
    given = {name: text for name, text in (("payment_id", payment_id), ("note", note)) if text is not None}
    wanted = read_body(msgspec.json.encode(given), Allocate)
    try:
        await visit.gateway.port(TransactionService).allocate(
            visit.merchant_id, visit.env, transaction_id, wanted, actor=visit.visitor.actor
        )
    except AlreadyAllocated:
        return await _first(visit, transaction_id)
    return ""


async def _first(visit: PageRequest, transaction_id: str) -> str:
    service = visit.gateway.port(TransactionOperatorService)
    row, decisions = await service.get(transaction_id), await service.allocations(transaction_id)
    amount = _amount(row["amount_cents"])
    if not decisions:
        return f"Not done: a report of M-Pesa has already given {amount} of {row['receipt']} to {row['subject_id']}."
    last = decisions[-1]
    who = await visit.name_of(last["by"])
    when = format_near(last["at"], visit.gateway.clock.now())
    for_what = last["note"] or f"{last['subject_kind'].replace('_', ' ')} {last['subject_id']}"
    return f"Not done: {who} was first and took {amount} of {row['receipt']} at {when}, for: {for_what}."


def _amount(cents: int | None) -> str:
    if cents is None:
        return "money"
    return f"KES {cents // 100:,}" if cents % 100 == 0 else f"KES {cents // 100:,}.{cents % 100:02}"


# -- the counter ------------------------------------------------------------------------------------------------------


class _CounterQuery(msgspec.Struct, frozen=True, kw_only=True):
    shortcode: str | None = None
    merchant: str | None = None


async def counter(visit: PageRequest) -> Rendered:
    """Show the newest unallocated money of one shortcode."""
    query, service = visit.read_query(_CounterQuery), visit.gateway.port(TransactionOperatorService)
    offered: list[str] = []
    if visit.merchant_id is not None:
        offered = await service.shortcodes(visit.merchant_id, visit.env)
    shortcode = visit.text("shortcode") or query.shortcode or (offered[0] if offered else "")
    since = visit.gateway.clock.now() - _RECENT
    filters = OperatorTransactionFilters(
        merchant=query.merchant, direction="in", allocated=False, shortcode=shortcode or None, since=since
    )
    page = await service.page(visit.env, filters, _AT_COUNTER) if shortcode else None
    first = page and page.first
    watched = {"shortcode": shortcode, "direction": "in", "allocated": "false", "counter": "true"}
    newer = urlencode(watched | {"cursor": first or "", "since": since.isoformat(), "env": visit.env})
    return Rendered(
        "counter.html",
        {
            "rows": page.rows if page else (),
            "shortcode": shortcode,
            "offered": offered,
            "newer": newer if shortcode else None,
            "hours": _RECENT // timedelta(hours=1),
            "fields": {name: visit.text(name) for name in ("transaction_id", "order")},
        },
    )


async def take(visit: PageRequest) -> Redirect:
    transaction_id, order = visit.text("transaction_id"), visit.text("order")
    if not order:
        raise InvalidFields.field_error("order", "enter the number of the order")
    note = f"Order {order}" if len(order) < SHORTEST_NOTE or order[0].isdigit() else order
    lost = await _allocate(visit, transaction_id, None, note)
    to = f"{COUNTER}?{urlencode({'shortcode': visit.text('shortcode')})}"
    if lost:
        return Redirect(to, lost, is_warning=True)
    row = await visit.gateway.port(TransactionOperatorService).get(transaction_id)
    return Redirect(to, f"{_amount(row['amount_cents'])} of {row['receipt']} taken for: {mask_phones(note)}.")
