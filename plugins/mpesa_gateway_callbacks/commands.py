"""The commands ``mpesa-gateway callbacks list``, ``show`` and ``replay``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from mpesa_gateway.commands.confirming import YES, confirm
from mpesa_gateway.commands.listing import JSON, print_json, show, show_fields
from mpesa_gateway.commands.session import LIVE, CommandFailed, Session, actor, env_of, pass_session, read_time
from mpesa_gateway.env import Env

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.db.engine import Found
    from mpesa_gateway_callbacks.schemas import CallbackQuery

_MOST = 1000
_HEADINGS = ("id", "state", "kind", "env", "received_at", "source", "merchant_id", "subject_id")

_KIND = click.option("--kind", metavar="KIND", help="Only callbacks of this kind, such as stk.")
_UNREAD = click.option(
    "--unread", is_flag=True, help="Only unused callbacks: waiting, unmatched, or refused as unreadable."
)
_SINCE = click.option("--since", metavar="TIME", help="Only callbacks from this time on, such as 2026-11-23T08:00:00Z.")
_UNTIL = click.option("--until", metavar="TIME", help="Only callbacks before this time.")


@dataclass(frozen=True)
class _Kept:
    """A listed callback; ``problem`` prevents its replay."""

    callback_id: str
    state: str
    kind: str
    env: str | None
    received_at: datetime
    source: str
    merchant_id: str | None
    subject_id: str | None
    problem: str | None = None

    @property
    def cells(self) -> tuple[Any, ...]:
        return (
            *(self.callback_id, self.state, self.kind, self.env, self.received_at, self.source),
            *(self.merchant_id or None, self.subject_id or None),
        )


@click.group()
def callbacks() -> None:
    """List, show and replay callbacks from Safaricom."""


@callbacks.command("list")
@_UNREAD
@_KIND
@_SINCE
@_UNTIL
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="How many at most.")
@LIVE
@JSON
@pass_session
def list_(
    session: Session,
    kind: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    *,
    unread: bool,
    is_live: bool,
    as_json: bool,
) -> None:
    """List accepted and refused callbacks of one env, and those without an env, newest first."""
    query = _query(kind, since, until, limit, unread=unread)
    env = env_of(is_live=is_live)

    async def work(gateway: Gateway) -> list[_Kept]:
        return await _find_many(gateway, env, query)

    show(_HEADINGS, [each.cells for each in session.run(work)], as_json=as_json, absent="-")


@callbacks.command("show")
@click.argument("callback_id", metavar="CBK_…|REF_…")
@click.option("--unmasked", is_flag=True, help="Print the body with whole phone numbers. This is audited.")
@JSON
@pass_session
def show_(session: Session, callback_id: str, *, unmasked: bool, as_json: bool) -> None:
    """Show one callback with its body, phone numbers masked."""

    async def work(gateway: Gateway) -> dict[str, Any]:
        row = await _find(gateway, callback_id)
        if unmasked:
            await gateway.audit.record(
                "callback.shown",
                merchant_id=row["merchant_id"] or None,
                actor=actor(),
                subject_id=callback_id,
                env=row["env"],
            )
        return _details(callback_id, row, unmasked=unmasked)

    found = session.run(work)
    if as_json:
        print_json(found)
        return
    body = found.pop("body")
    show_fields(found)
    click.echo()
    click.echo(body)


@callbacks.command()
@click.argument("callback_ids", nargs=-1, metavar="[CBK_…|REF_…]…")
@_UNREAD
@_KIND
@_SINCE
@_UNTIL
@click.option("--dry-run", is_flag=True, help="Only list what would be replayed.")
@YES
@LIVE
@JSON
@pass_session
def replay(
    session: Session,
    callback_ids: tuple[str, ...],
    kind: str | None,
    since: str | None,
    until: str | None,
    *,
    unread: bool,
    dry_run: bool,
    yes: bool,
    is_live: bool,
    as_json: bool,
) -> None:
    """Process callbacks again: the named ones, or with --unread all unused ones of one env.

    You confirm that refused callbacks came from Safaricom. Signature, shape and subject are still checked. Applied
    callbacks do not change. Each replay is audited.
    """
    if bool(callback_ids) == unread or (callback_ids and (kind or since or until)):
        raise click.UsageError("name callbacks (cbk_…, ref_…), or use --unread with its filters, and not both")
    query = _query(kind, since, until, _MOST, unread=True)
    env = env_of(is_live=is_live)

    async def choose(gateway: Gateway) -> list[_Kept]:
        if not callback_ids:
            return await _find_many(gateway, env, query)
        found = [_kept(each, await _find(gateway, each)) for each in dict.fromkeys(callback_ids)]
        if (other := next((each for each in found if each.env not in {None, env}), None)) is not None:
            advice = "add --live" if other.env == "live" else "leave --live out"
            raise CommandFailed(f"{other.callback_id} is of {other.env}: {advice}")
        return found

    async def work(gateway: Gateway) -> list[tuple[str, str | None, str]]:
        return [await _replay(gateway, each) for each in chosen if each.problem is None]

    chosen = session.run(choose)
    if dry_run:
        show(
            (*_HEADINGS, "would"),
            [(*each.cells, "be replayed" if each.problem is None else f"not: {each.problem}") for each in chosen],
            as_json=as_json,
            absent="-",
        )
        return
    if refused := sum(each.problem is None and each.callback_id.startswith("ref_") for each in chosen):
        what = "callback was" if refused == 1 else "callbacks were"
        confirm(f"You vouch that {refused} refused {what} sent by Safaricom.", yes=yes)
    done = [*session.run(work), *((each.callback_id, None, f"not: {each.problem}") for each in chosen if each.problem)]
    show(("id", "callback_id", "outcome"), done, as_json=as_json, absent="-")
    if callback_ids and any(callback_id is None for _, callback_id, _ in done):
        raise CommandFailed("not every callback was replayed: the list says why")


async def _replay(gateway: Gateway, kept: _Kept) -> tuple[str, str | None, str]:
    from mpesa_gateway.errors import ApiError
    from mpesa_gateway_callbacks.operator_service import CallbackOperatorService

    operators = gateway.port(CallbackOperatorService)
    try:
        done = await operators.replay(kept.callback_id, actor=actor(), vouches=True)
    except ApiError as problem:
        return kept.callback_id, None, f"not: {problem.message}"
    return kept.callback_id, done.callback_id, f"unchanged: {done.verdict}" if done.was_done else done.verdict


def _query(kind: str | None, since: str | None, until: str | None, limit: int, *, unread: bool) -> CallbackQuery:
    from mpesa_gateway_callbacks.schemas import CallbackQuery

    return CallbackQuery(
        limit=limit,
        kind=kind,
        since=None if since is None else read_time(since, "--since"),
        until=None if until is None else read_time(until, "--until"),
        unread=unread,
    )


async def _find_many(gateway: Gateway, env: Env, query: CallbackQuery) -> list[_Kept]:
    from mpesa_gateway_callbacks.operator_service import CallbackOperatorService

    if query.kind is not None and query.kind not in gateway.callback_kinds:
        raise click.BadParameter(f"use one of {', '.join(sorted(gateway.callback_kinds))}", param_hint="--kind")
    operators = gateway.port(CallbackOperatorService)
    accepted, refused = await operators.rows(env, query)
    found = [_kept(row["callback_id"], row) for row in accepted] + [_kept(row["refused_id"], row) for row in refused]
    return sorted(found, key=lambda each: (each.received_at, each.callback_id), reverse=True)[: query.limit]


async def _find(gateway: Gateway, callback_id: str) -> Found:
    from mpesa_gateway_callbacks.operator_service import CallbackOperatorService

    operators = gateway.port(CallbackOperatorService)
    return await (operators.find_refused if callback_id.startswith("ref_") else operators.find)(callback_id)


def _kept(callback_id: str, row: Found) -> _Kept:
    from mpesa_gateway_callbacks.operator_service import not_replayable

    is_refused = callback_id.startswith("ref_")
    state = row["verdict"] if not is_refused else "replayed" if row["callback_id"] else f"refused: {row['reason']}"
    return _Kept(
        callback_id,
        state,
        row["kind"],
        row["env"],
        row["at" if is_refused else "received_at"],
        row["source"],
        row["merchant_id"],
        row["subject_id"],
        not_replayable(row) if is_refused and not row["callback_id"] else None,
    )


def _details(callback_id: str, row: Found, *, unmasked: bool) -> dict[str, Any]:
    # The handle and the body can contain the payer's number.
    from mpesa_gateway_callbacks.schemas import laid_out, truncated

    kept = _kept(callback_id, row)
    found = dict(zip(_HEADINGS, kept.cells, strict=True))
    if callback_id.startswith("ref_"):
        body = row["body"] if row["original"] is None else row["original"]
        cut = truncated(row)
        found |= {"callback_id": row["callback_id"], "replayed_at": row["replayed_at"]}
        found |= {"truncated": None if cut is None else msgspec.to_builtins(cut), "replayable": kept.problem or "yes"}
    else:
        body = row["body"]
        names: Sequence[str] = ("result_code", "signature", "repeats", "applied_at", "due_at")
        found |= {name: row[name] for name in names} | {"handle": laid_out(row["handle"])}
    return found | {"body": body if unmasked else laid_out(body)}
