"""Operators' pages of transactions, and of contradicting reports."""

from collections.abc import Sequence

import msgspec

from mpesa_gateway.ops_contract import (
    Action,
    AttentionItem,
    Concern,
    Menu,
    Page,
    PageRequest,
    Pages,
    Permission,
    Redirect,
    Rendered,
    TimelineSource,
)
from mpesa_gateway_transactions import allocation_pages, counter_pages, list_pages
from mpesa_gateway_transactions.allocation_pages import amount_text
from mpesa_gateway_transactions.contradictions import MOST_SHOWN, ContradictionReview
from mpesa_gateway_transactions.counter_pages import CHANGES, COUNTER
from mpesa_gateway_transactions.list_pages import LIST
from mpesa_gateway_transactions.operator_service import TransactionOperatorService

_PATH = "transactions/contradictions"
_ONE = f"{LIST}/{{transaction_id}}"


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    merchant: str | None = None


async def contradictions(visit: PageRequest) -> Rendered:
    review, query = visit.gateway.port(ContradictionReview), visit.read_query(_Query)
    rows = await review.newest(visit.env, query.merchant)
    return Rendered(
        "contradictions.html",
        {
            "rows": rows,
            "names": await visit.gateway.merchants.names([row["merchant_id"] for row in rows]),
            "is_cut": len(rows) == MOST_SHOWN,
            "fields": {name: visit.text(name) for name in ("transaction_id", "source", "note")},
        },
    )


async def resolve(visit: PageRequest) -> Redirect:
    await visit.gateway.port(ContradictionReview).resolve(
        visit.env,
        visit.text("transaction_id"),
        visit.text("source"),
        visit.text("note"),
        actor=visit.visitor.actor,
        merchant_id=visit.merchant_id,
    )
    return Redirect(_PATH, "Marked as resolved.")


async def contradicting(visit: PageRequest) -> Sequence[AttentionItem]:
    count = await visit.gateway.port(ContradictionReview).count(visit.env, visit.merchant_id)
    if not count:
        return ()
    number = "1,000 or more" if count == 1000 else str(count)
    text = f"{number} {'report of M-Pesa contradicts' if count == 1 else 'reports of M-Pesa contradict'} recorded money"
    return (AttentionItem(text=text, to=_PATH, state="failed"),)


async def unallocated(visit: PageRequest) -> Sequence[AttentionItem]:
    """Name money of the last days that needs a decision."""
    service = visit.gateway.port(TransactionOperatorService)
    found = await service.total(visit.env, list_pages.waiting(visit))
    if not found.count:
        return ()
    what = "transaction is" if found.count == 1 else "transactions are"
    text = f"{found.count:,} {what} unallocated: {amount_text(found.amount)} of the last {list_pages.RECENT.days} days"
    return (AttentionItem(text=text, to=f"{LIST}?{list_pages.waiting_query(visit)}"),)


PAGES = Pages(
    templates="mpesa_gateway_transactions",
    pages=(
        Page(
            LIST, "Transactions", list_pages.transactions, Permission.VIEW, menu=Menu("Transactions", 15, "Money", "t")
        ),
        Page(f"{LIST}/newer", "New transactions", list_pages.newer, Permission.VIEW, is_part=True),
        Page(f"{LIST}/total", "Total", list_pages.total, Permission.VIEW, is_part=True),
        Page(f"{LIST}/export", "Transactions as CSV", list_pages.export, Permission.NUMBERS),
        Page(COUNTER, "Counter", counter_pages.counter, Permission.ALLOCATE),
        Page(CHANGES, "Counter", counter_pages.changes, Permission.ALLOCATE, is_part=True),
        Page(_PATH, "Contradicting reports", contradictions, Permission.VIEW),
        Page(_ONE, "Transaction", allocation_pages.transaction, Permission.VIEW, names="txn", place="transaction"),
        Page(f"{_ONE}/allocate", "Allocate", allocation_pages.allocation, Permission.ALLOCATE, place="allocation"),
    ),
    acts=(
        Action(f"{LIST}/look", "search", list_pages.search, Permission.VIEW, back=LIST),
        Action(COUNTER, "take", counter_pages.take, Permission.ALLOCATE),
        Action(_PATH, "resolve", resolve, Permission.RESOLVE),
        Action(f"{_ONE}/allocate", "allocate", allocation_pages.allocate, Permission.ALLOCATE),
    ),
    traces=(TimelineSource("transaction", allocation_pages.past),),
    concerns=(Concern(contradicting, Permission.VIEW), Concern(unallocated, Permission.VIEW)),
    finder=list_pages.find,
    owners={"transaction_id": allocation_pages.owner},
)
