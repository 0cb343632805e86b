"""``mpesa-gateway events``: events of the outbox and the subscribers that process them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json, show, show_fields
from mpesa_gateway.commands.session import (
    LIVE,
    MERCHANT,
    Session,
    actor,
    env_of,
    merchant_of,
    pass_session,
)
from mpesa_gateway.phone import mask_within

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.db.engine import Row

_EVENT = click.argument("event_id", metavar="EVT_…")
_LISTED = ("event_id", "occurred_at", "kind", "subject_id")


@click.group()
def events() -> None:
    """List events, show one, and retry a subscriber that fails."""


@events.command("list")
@click.option("--type", "kind", metavar="TYPE", help="Only events of this type, such as payment.completed.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Maximum number of events.")
@MERCHANT
@LIVE
@JSON
@pass_session
def list_(
    session: Session, kind: str | None, limit: int, merchant_id: str | None, *, is_live: bool, as_json: bool
) -> None:
    """List a merchant's events of one env, newest first."""
    from mpesa_gateway.db.outbox_admin import EventsQuery, OutboxAdmin

    async def work(gateway: Gateway) -> Sequence[Row]:
        merchant = await merchant_of(gateway, merchant_id)
        query = EventsQuery(merchant=merchant.merchant_id, kind=kind)
        return (await OutboxAdmin(gateway.db, gateway.clock).page(env_of(is_live=is_live), query, limit)).rows

    show(_LISTED, [[row[name] for name in _LISTED] for row in session.run(work)], as_json=as_json)


@events.command("show")
@_EVENT
@JSON
@pass_session
def show_(session: Session, event_id: str, *, as_json: bool) -> None:
    """Show an event with its subscribers. Phone numbers are masked."""
    from mpesa_gateway.db.outbox_admin import OutboxAdmin

    async def work(gateway: Gateway) -> tuple[Row, Sequence[Mapping[str, Any]]]:
        log = OutboxAdmin(gateway.db, gateway.clock)
        return await log.get(event_id), await log.tasks(event_id)

    row, tasks = session.run(work)
    shown = {name: row[name] for name in ("event_id", "kind", "merchant_id", "env", "subject_id", "occurred_at")}
    body = mask_within(msgspec.json.decode(row["body"] or row["payload"]))
    columns = ("subscriber", "attempts", "due_at", "done_at", "last_error")
    if as_json:
        tasks = [{name: task[name] for name in columns} for task in tasks]
        print_json(shown | {"body": body, "subscribers": mask_within(tasks)})
        return
    show_fields(shown)
    click.echo("\n" + msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")
    show(columns, [mask_within([task[name] for name in columns]) for task in tasks], absent="-")


@events.command()
@_EVENT
@click.argument("subscriber")
@JSON
@pass_session
def retry(session: Session, event_id: str, subscriber: str, *, as_json: bool) -> None:
    """Let SUBSCRIBER process an event again now."""
    from mpesa_gateway.db.outbox import HANDLE
    from mpesa_gateway.db.outbox_admin import OutboxAdmin
    from mpesa_gateway.errors import Conflict

    async def work(gateway: Gateway) -> None:
        log = OutboxAdmin(gateway.db, gateway.clock)
        row = await log.get(event_id)
        if not await log.wake(event_id, subscriber):
            waiting = [task["subscriber"] for task in await log.tasks(event_id) if task["done_at"] is None]
            raise Conflict(
                f"no subscriber `{subscriber}` waits for this event: name one of {', '.join(waiting)}"
                if waiting
                else "every subscriber has processed this event"
            )
        await gateway.audit.record(
            "event.retried",
            merchant_id=row["merchant_id"],
            actor=actor(),
            subject_id=event_id,
            env=row["env"],
            detail={"subscriber": subscriber},
        )
        await gateway.jobs.enqueue(HANDLE, event_id=event_id, subscriber=subscriber)

    session.run(work)
    if as_json:
        print_json({"event_id": event_id, "subscriber": subscriber, "queued": True})
    else:
        click.echo(f"{subscriber} processes {event_id} again as soon as a worker is free.")
