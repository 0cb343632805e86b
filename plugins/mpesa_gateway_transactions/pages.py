"""Operators' page of contradicting reports."""

from collections.abc import Sequence

import msgspec

from mpesa_gateway.ops_contract import (
    Action,
    AttentionItem,
    Concern,
    Page,
    PageRequest,
    Pages,
    Permission,
    Redirect,
    Rendered,
)
from mpesa_gateway_transactions.contradictions import MOST_SHOWN, ContradictionReview

_PATH = "transactions/contradictions"


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


PAGES = Pages(
    templates="mpesa_gateway_transactions",
    pages=(Page(_PATH, "Contradicting reports", contradictions, Permission.VIEW),),
    acts=(Action(_PATH, "resolve", resolve, Permission.RESOLVE),),
    concerns=(Concern(contradicting, Permission.VIEW),),
)
