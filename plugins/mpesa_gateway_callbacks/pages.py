"""The operators' pages about callbacks: what Safaricom sent, what was refused and why, and taking either up again."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Invalid
from mpesa_gateway.pages import Act, Concern, Done, Menu, Page, Pages, Role, Shown, Visit
from mpesa_gateway_callbacks.schemas import CallbackQuery, RefusedQuery, laid_out
from mpesa_gateway_callbacks.service import CallbackInbox

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_A_DAY = timedelta(days=1)

WHY = {
    "source": "it did not come from an address on the allowlist",
    "token": "its address was none that we hand out",
    "signature": "its signature is wrong, or missing where one is required",
    "shape": "it is not a callback of this kind",
    "subject": "it is about something else than what its address was made for",
}
"""What each reason means, for people."""


class _Accepted(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Literal["waiting", "applied", "unmatched"] | None = None
    cursor: str | None = None


class _Refused(msgspec.Struct, frozen=True, kw_only=True):
    cursor: str | None = None


async def callbacks(visit: Visit) -> Shown:
    """Those that were taken, newest first."""
    query = visit.read_query(_Accepted)
    page = await visit.gateway.services.get(CallbackInbox).accepted(
        visit.env, CallbackQuery(limit=50, cursor=query.cursor, verdict=query.verdict)
    )
    return Shown(
        "callbacks.html", {"rows": page.data, "query": query} | visit.pager("callbacks", page.meta.next_cursor)
    )


async def refused(visit: Visit) -> Shown:
    """Those that were refused, newest first."""
    query = visit.read_query(_Refused)
    page = await visit.gateway.services.get(CallbackInbox).refused(
        visit.env, RefusedQuery(limit=50, cursor=query.cursor)
    )
    pager = visit.pager("callbacks/refused", page.meta.next_cursor)
    return Shown("refused_callbacks.html", {"rows": page.data, "why": WHY} | pager)


async def callback(visit: Visit) -> Shown:
    """One that was taken."""
    row = await visit.gateway.services.get(CallbackInbox).find(visit.values["callback_id"])
    if row["env"] is not None:
        visit.require(row["env"])
    return Shown(
        "callback.html",
        {"row": row, "merchant": await _merchant(visit, row), "body": laid_out(row["body"])},
    )


async def _merchant(visit: Visit, row: Row) -> str | None:
    """The name of the merchant whom a callback is about."""
    merchant_id = row["merchant_id"]
    return (await visit.gateway.merchants.names([merchant_id])).get(merchant_id) if merchant_id else None


async def refused_callback(visit: Visit) -> Shown:
    """One that was refused."""
    row = await visit.gateway.services.get(CallbackInbox).find_refused(visit.values["refused_id"])
    if row["env"] is not None:
        visit.require(row["env"])
    merchant = await _merchant(visit, row)
    can_replay = row["callback_id"] is None and row["original"] is not None and row["reason"] != "token"
    return Shown("refused_callback.html", {"row": row, "merchant": merchant, "why": WHY, "can_replay": can_replay})


async def offer(visit: Visit) -> Done:
    """Offer it again to whoever waits for it."""
    callback_id = visit.values["callback_id"]
    verdict = await visit.gateway.services.get(CallbackInbox).offer(callback_id, actor=visit.visitor.actor)
    return Done(f"callbacks/{callback_id}", f"It went through the pipeline again: {verdict}.")


async def replay(visit: Visit) -> Done:
    """Take a refused one after all."""
    refused_id = visit.values["refused_id"]
    if visit.text("confirm") != refused_id:
        raise Invalid.field_error("confirm", "tick the box: you vouch for where this came from")
    taken = await visit.gateway.services.get(CallbackInbox).replay(refused_id, actor=visit.visitor.actor)
    return Done(f"callbacks/{taken}", "It was taken, and went through the pipeline.")


async def unused(gateway: "Gateway", env: Env) -> Sequence[Concern]:
    """Callbacks that nobody could use, and those refused of late."""
    inbox, found = gateway.services.get(CallbackInbox), list[Concern]()
    if count := await inbox.count_unmatched(env):
        text = f"{count} {'callback' if count == 1 else 'callbacks'} that no payment could use"
        found.append(Concern(text=text, to="callbacks?verdict=unmatched"))
    if count := await inbox.count_refused(env, _A_DAY):
        text = f"{count if count < 1000 else '1,000 or more'} refused {'callback' if count == 1 else 'callbacks'} today"
        found.append(Concern(text=text, to="callbacks/refused"))
    return found


PAGES = Pages(
    templates="mpesa_gateway_callbacks",
    pages=(
        Page("callbacks", "Callbacks", callbacks, menu=Menu("Callbacks", 40, "Money", "c")),
        Page("callbacks/refused", "Refused callbacks", refused),
        Page("callbacks/{callback_id}", "Callback", callback, names="cbk", place="callback"),
        Page("callbacks/refused/{refused_id}", "Refused callback", refused_callback, names="ref"),
    ),
    acts=(
        Act("callbacks/{callback_id}/offer", "offer", offer, back="callbacks/{callback_id}"),
        Act("callbacks/refused/{refused_id}", "replay", replay, role=Role.ADMIN),
    ),
    concerns=(unused,),
)
