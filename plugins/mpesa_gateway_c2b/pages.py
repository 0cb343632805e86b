"""Operators' page of registrations."""

from collections.abc import Sequence
from typing import Any

import msgspec

from mpesa_gateway.ops_contract import AttentionItem, Concern, Menu, Page, PageRequest, Pages, Permission, Rendered
from mpesa_gateway_c2b import tables
from mpesa_gateway_c2b.explanations import meaning_of, state_of
from mpesa_gateway_c2b.registration import KIND
from mpesa_gateway_callbacks.api import Callbacks

_PATH = "c2b"
_TONES = {"already_registered": "attention", "removed": "unknown", "registering": "pending"}
"""Tones of states whose word has none."""
_DOUBTFUL = frozenset({"unknown", "refused"})


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    merchant: str | None = None


async def registrations(visit: PageRequest) -> Rendered:
    gateway, now, shown = visit.gateway, visit.gateway.clock.now(), list[dict[str, Any]]()
    for row in await gateway.db.fetch(tables.OF_ENV, visit.env, visit.read_query(_Query).merchant):
        last = await gateway.port(Callbacks).last_received(KIND, row["receiver_id"])
        state = state_of(row, now)
        told = {"state": state, "last": last, "meaning": meaning_of(state, row, row["number"], last)}
        shown.append(dict(row) | {"merchant_id": row["owner_id"] or row["merchant_id"]} | told)
    names = await gateway.merchants.names([row["merchant_id"] for row in shown])
    return Rendered("c2b.html", {"rows": shown, "names": names, "own": visit.merchant_id, "tones": _TONES})


async def doubtful(visit: PageRequest) -> Sequence[AttentionItem]:
    now = visit.gateway.clock.now()
    rows = await visit.gateway.db.fetch(tables.OF_ENV, visit.env, visit.merchant_id)
    count = sum(state_of(row, now) in _DOUBTFUL for row in rows)
    if not count:
        return ()
    text = f"{count} C2B {'registration is' if count == 1 else 'registrations are'} refused or of unknown outcome"
    return (AttentionItem(text=text, to=_PATH),)


PAGES = Pages(
    templates="mpesa_gateway_c2b",
    pages=(Page(_PATH, "C2B", registrations, Permission.VIEW, menu=Menu("C2B", 45, "Money")),),
    concerns=(Concern(doubtful, Permission.VIEW),),
)
