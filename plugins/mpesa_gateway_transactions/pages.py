"""Operators' page of contradicting reports."""

from collections.abc import Sequence

from mpesa_gateway.env import Env
from mpesa_gateway.ops_contract import Action, AttentionItem, Page, PageRequest, Pages, Permission, Redirect, Rendered
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.contradictions import MOST_SHOWN, ContradictionReview

_PATH = "transactions/contradictions"


async def contradictions(visit: PageRequest) -> Rendered:
    review = visit.gateway.port(ContradictionReview)
    rows = await review.newest(visit.env)
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
        visit.env, visit.text("transaction_id"), visit.text("source"), visit.text("note"), actor=visit.visitor.actor
    )
    return Redirect(_PATH, "Marked as resolved.")


async def contradicting(gateway: Runtime, env: Env) -> Sequence[AttentionItem]:
    count = await gateway.port(ContradictionReview).count(env)
    if not count:
        return ()
    number = "1,000 or more" if count == 1000 else str(count)
    text = f"{number} {'report of M-Pesa contradicts' if count == 1 else 'reports of M-Pesa contradict'} recorded money"
    return (AttentionItem(text=text, to=_PATH, state="failed"),)


PAGES = Pages(
    templates="mpesa_gateway_transactions",
    pages=(Page(_PATH, "Contradicting reports", contradictions, Permission.GATEWAY),),
    acts=(Action(_PATH, "resolve", resolve, Permission.OPERATE),),
    concerns=(contradicting,),
)
