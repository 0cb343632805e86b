"""The operators' pages of callbacks."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import msgspec

from mpesa_gateway.db.engine import Found
from mpesa_gateway.errors import InvalidFields
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
)
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService, Replayed, not_replayable
from mpesa_gateway_callbacks.schemas import CallbackQuery, RefusedQuery, laid_out, truncated

_A_DAY = timedelta(days=1)
_A_WEEK = timedelta(days=7)

WHY = {
    "kind": "no enabled plugin handles callbacks of this kind: enable one, then replay this callback",
    "source": "the source address is not on the allowlist",
    "token": "the callback address is not one that this gateway issued",
    "signature": "the signature is wrong, or missing where one is required",
    "size": "the body exceeds the size limit; only its beginning was kept",
    "shape": "the body is not a callback of this kind",
    "receiver": "it is of money for another shortcode than its address",
    "doubled": "a decisive field appears twice with different values",
    "subject": "the subject differs from the subject of the callback address",
}
"""Explanations of the reasons of refusal."""


class _Accepted(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Literal["waiting", "applied", "unmatched"] | None = None
    cursor: str | None = None


class _Refused(msgspec.Struct, frozen=True, kw_only=True):
    unread: bool = False
    cursor: str | None = None


async def callbacks(visit: PageRequest) -> Rendered:
    query = visit.read_query(_Accepted)
    page = await visit.gateway.port(CallbackOperatorService).accepted(
        visit.env, CallbackQuery(limit=50, cursor=query.cursor, verdict=query.verdict)
    )
    return Rendered(
        "callbacks.html", {"rows": page.data, "query": query} | visit.pager("callbacks", page.meta.next_cursor)
    )


async def refused(visit: PageRequest) -> Rendered:
    query = visit.read_query(_Refused)
    page = await visit.gateway.port(CallbackOperatorService).refused(
        visit.env, RefusedQuery(limit=50, cursor=query.cursor, unread=query.unread)
    )
    pager = visit.pager("callbacks/refused", page.meta.next_cursor)
    return Rendered("refused_callbacks.html", {"rows": page.data, "why": WHY, "query": query} | pager)


async def callback(visit: PageRequest) -> Rendered:
    row = await visit.gateway.port(CallbackOperatorService).find(visit.values["callback_id"])
    if row["env"] is not None:
        visit.require(row["env"])
    return Rendered(
        "callback.html",
        {"row": row, "merchant": await _merchant(visit, row), "body": laid_out(row["body"])},
    )


async def _merchant(visit: PageRequest, row: Found) -> str | None:
    merchant_id = row["merchant_id"]
    return (await visit.gateway.merchants.names([merchant_id])).get(merchant_id) if merchant_id else None


async def refused_callback(visit: PageRequest) -> Rendered:
    row = await visit.gateway.port(CallbackOperatorService).find_refused(visit.values["refused_id"])
    if row["env"] is not None:
        visit.require(row["env"])
    merchant = await _merchant(visit, row)
    can_replay = row["callback_id"] is None and not_replayable(row) is None
    shown = {"row": row, "merchant": merchant, "why": WHY, "can_replay": can_replay, "truncated": truncated(row)}
    return Rendered("refused_callback.html", shown)


async def offer(visit: PageRequest) -> Redirect:
    done = await _replay(visit, visit.values["callback_id"])
    text = "Already applied: nothing changed." if done.was_done else f"Processed again: {done.verdict}."
    return Redirect(f"callbacks/{done.callback_id}", text)


async def replay(visit: PageRequest) -> Redirect:
    refused_id = visit.values["refused_id"]
    if visit.text("confirm") != refused_id:
        raise InvalidFields.field_error("confirm", "confirm that Safaricom sent this callback")
    done = await _replay(visit, refused_id)
    text = "Already accepted: nothing changed." if done.was_done else "Accepted and processed."
    return Redirect(f"callbacks/{done.callback_id}", text)


async def _replay(visit: PageRequest, callback_id: str) -> Replayed:
    # Callbacks without an env are shown in both.
    operators = visit.gateway.port(CallbackOperatorService)
    row = await (operators.find_refused if callback_id.startswith("ref_") else operators.find)(callback_id)
    if row["env"] is not None:
        visit.require(row["env"])
    return await operators.replay(callback_id, actor=visit.visitor.actor, vouches=True)


async def unused_callbacks(visit: PageRequest) -> Sequence[AttentionItem]:
    env, operators, found = visit.env, visit.gateway.port(CallbackOperatorService), list[AttentionItem]()
    if count := await operators.count_unmatched(env):
        text = f"{count} {'callback' if count == 1 else 'callbacks'} without a matching payment"
        found.append(AttentionItem(text=text, to="callbacks?verdict=unmatched"))
    if count := await operators.count_unread(env, _A_WEEK):
        what = "callback from Safaricom" if count == 1 else "callbacks from Safaricom"
        text = f"{count if count < 1000 else '1,000 or more'} {what} could not be read"
        found.append(AttentionItem(text=text, to="callbacks/refused?unread=true"))
    if count := await operators.count_refused(env, _A_DAY):
        text = f"{count if count < 1000 else '1,000 or more'} refused {'callback' if count == 1 else 'callbacks'} today"
        found.append(AttentionItem(text=text, to="callbacks/refused"))
    return found


PAGES = Pages(
    templates="mpesa_gateway_callbacks",
    pages=(
        Page("callbacks", "Callbacks", callbacks, Permission.GATEWAY, menu=Menu("Callbacks", 40, "Money", "c")),
        Page("callbacks/refused", "Refused callbacks", refused, Permission.GATEWAY),
        Page("callbacks/{callback_id}", "Callback", callback, Permission.GATEWAY, names="cbk", place="callback"),
        Page("callbacks/refused/{refused_id}", "Refused callback", refused_callback, Permission.GATEWAY, names="ref"),
    ),
    acts=(
        Action("callbacks/{callback_id}/offer", "offer", offer, Permission.OPERATE, back="callbacks/{callback_id}"),
        Action("callbacks/refused/{refused_id}", "replay", replay, Permission.ADMINISTER),
    ),
    concerns=(Concern(unused_callbacks, Permission.GATEWAY),),
)
