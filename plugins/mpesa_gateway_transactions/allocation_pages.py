"""Operators' pages of one transaction, and of its allocation."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.ids import Ids
from mpesa_gateway.local_time import format_near
from mpesa_gateway.ops_contract import PageRequest, Redirect, Rendered, TimelineEntry
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.list_pages import LIST
from mpesa_gateway_transactions.listing import owner_of
from mpesa_gateway_transactions.manual import AlreadyAllocated
from mpesa_gateway_transactions.operator_service import TransactionOperatorService, is_open
from mpesa_gateway_transactions.page_words import KINDS, SOURCES
from mpesa_gateway_transactions.schemas import Allocate
from mpesa_gateway_transactions.service import TransactionService


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
            "is_open": is_open(row),
            "may_decide": row["direction"] == "in" and row["subject_id"] is None,
            "kinds": KINDS,
            "sources": SOURCES,
        },
        title=f"Transaction {row['receipt']}",
    )


async def past(gateway: Runtime, transaction_id: str) -> Sequence[TimelineEntry]:
    service = gateway.port(TransactionOperatorService)
    row = await service.get(transaction_id)
    way = "Money in" if row["direction"] == "in" else "Money out"
    moments = [
        TimelineEntry(
            at=Ids.time_of(transaction_id),
            source=SOURCES.get(row["first_source"], row["first_source"]),
            state="recorded",
            text=f"{way}, first report",
        )
    ]
    moments += [
        TimelineEntry(
            at=one["seen_at"],
            source=SOURCES.get(one["source"], one["source"]),
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
        raise InvalidFields.field_error("confirm", "tick the box: an allocation cannot be undone")
    page = f"{LIST}/{transaction_id}"
    given = {name: text for name in ("payment_id", "note") if (text := visit.text(name))}
    wanted = read_body(msgspec.json.encode(given), Allocate)
    try:
        await visit.gateway.port(TransactionService).allocate(
            visit.merchant_id, visit.env, transaction_id, wanted, actor=visit.visitor.actor
        )
    except AlreadyAllocated:
        return Redirect(page, f"Not done: {await explain_first(visit, transaction_id)}", is_warning=True)
    return Redirect(page, "Allocated to the payment." if payment_id else "Marked as dealt with.")


async def explain_first(visit: PageRequest, transaction_id: str) -> str:
    """State who or what allocated the money, when and for what."""
    service = visit.gateway.port(TransactionOperatorService)
    row, decisions = await service.get(transaction_id), await service.allocations(transaction_id)
    money = f"{amount_text(row['amount_cents'])} of {row['receipt']}"
    if not decisions:
        return f"a report of M-Pesa has already given {money} to {row['subject_id']}."
    last = decisions[-1]
    what = f"{last['subject_kind'].replace('_', ' ')} {last['subject_id']}"
    when = format_near(last["at"], visit.gateway.clock.now())
    if ":" not in last["by"]:
        return f"M-Pesa's evidence gave {money} to {what} at {when}."
    who = await visit.name_of(last["by"])
    return f"{who} was first and took {money} at {when}, for: {mask_phones(last['note'] or what)}."


def amount_text(cents: int | None) -> str:
    if cents is None:
        return "money"
    return f"KES {cents // 100:,}" if cents % 100 == 0 else f"KES {cents // 100:,}.{cents % 100:02}"
