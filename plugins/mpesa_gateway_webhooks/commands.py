"""The commands ``mpesa-gateway webhooks listen``, ``trigger`` and ``replay``."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.commands.listing import JSON, print_json, print_json_line
from mpesa_gateway.commands.session import (
    LIVE,
    MERCHANT,
    CommandFailed,
    Session,
    actor,
    env_of,
    merchant_of,
    pass_session,
    read_time,
)
from mpesa_gateway.env import Env
from mpesa_gateway.events import PublicEvent
from mpesa_gateway_webhooks.event_recipes import KINDS

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.db.engine import Row
    from mpesa_gateway.http.egress import EgressFailed, EgressResponse
    from mpesa_gateway.security.merchants import Merchant
    from mpesa_gateway_webhooks.dev_listener import DevListener
    from mpesa_gateway_webhooks.event_trigger import TriggeredEvent
    from mpesa_gateway_webhooks.schemas import ReplayMany

_PAUSE = 0.3
"""Seconds between two queries for new events."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@click.group()
def webhooks() -> None:
    """Show events, forward them to your own machine, trigger them, and send them again."""


@webhooks.command()
@click.option(
    "--forward-to",
    "url",
    metavar="URL",
    help="The address of your program, such as localhost:3000/webhooks; without it events are only shown.",
)
@click.option(
    "--events", default="*", show_default=True, help="Event types, separated by commas; * is a wildcard: payment.*"
)
@MERCHANT
@click.option(
    "--live", "is_live", is_flag=True, help="Live events, with real phone numbers; without it, sandbox events."
)
@click.option("--print-secret", is_flag=True, help="Print the signing secret, and exit.")
@JSON
@pass_session
def listen(
    session: Session,
    url: str | None,
    events: str,
    merchant_id: str | None,
    *,
    is_live: bool,
    print_secret: bool,
    as_json: bool,
) -> None:
    """Show new events until Ctrl-C, and forward each to your own machine, signed.

    The merchant's endpoint still gets its deliveries. Your program's responses are shown; failures are not retried.
    """
    from mpesa_gateway_webhooks.dev_listener import DevListener

    url, env = None if url is None else _read_url(url), env_of(is_live=is_live)

    async def work(gateway: Gateway) -> None:
        merchant = await merchant_of(gateway, merchant_id)
        listener = DevListener(
            merchant.merchant_id,
            env,
            _kinds(gateway, events),
            db=gateway.db,
            clock=gateway.clock,
            vault=gateway.vault,
            names=gateway.names,
        )
        if print_secret:
            click.echo(listener.secret.reveal())
            return
        await listener.start()
        try:
            await gateway.audit.record("webhook.listened", merchant_id=merchant.merchant_id, actor=actor(), env=env)
            _print_banner(listener, merchant, env, url, as_json=as_json)
            await _listen(listener, url, as_json=as_json)
        finally:
            await listener.stop()

    session.run(work)


def _print_banner(listener: DevListener, merchant: Merchant, env: Env, url: str | None, *, as_json: bool) -> None:
    target = "shown here" if url is None else f"forwarded to {url}"
    click.echo(
        f"Listening: {env} events of `{merchant.name}` ({merchant.merchant_id}) are {target}. Ctrl-C ends.", err=as_json
    )
    click.echo(f"Signed with {listener.secret.reveal()} (the same each time)", err=as_json)


async def _listen(listener: DevListener, url: str | None, *, as_json: bool) -> None:
    from mpesa_gateway.db.engine import UNREACHABLE

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    is_away = False
    while not stopped.is_set():
        rows: Sequence[Row] = ()
        try:
            rows = await listener.new_events()
            is_away = False
        except UNREACHABLE as problem:
            if not is_away:
                click.echo(f"mpesa-gateway: Postgres is away ({type(problem).__name__}): waiting for it", err=True)
            is_away = True
        for row in rows:
            if stopped.is_set():
                return
            answer = None if url is None else await listener.forward(row, url)
            _print_event(row, answer, as_json=as_json)
        if not rows:
            try:
                await asyncio.wait_for(stopped.wait(), _PAUSE)
            except TimeoutError:
                continue


def _print_event(row: Row, answer: EgressResponse | EgressFailed | None, *, as_json: bool) -> None:
    from mpesa_gateway.http.egress import EgressFailed, EgressResponse

    status = answer.status if isinstance(answer, EgressResponse) else None
    error = str(answer) if isinstance(answer, EgressFailed) else None
    if as_json:
        ms = answer.ms if isinstance(answer, EgressResponse) else None
        print_json_line({"event": msgspec.Raw(row["body"].encode()), "status": status, "ms": ms, "error": error})
        return
    line = f"{rfc3339(row['occurred_at'])}  {row['kind']}  {row['event_id']}"
    if isinstance(answer, EgressResponse):
        line += f"  [{answer.status}] {answer.ms} ms"
    elif error is not None:
        line += f"  [not delivered] {error}"
    click.echo(line)


@webhooks.command()
@click.argument("event", type=click.Choice(KINDS))
@click.option(
    "--amount", type=click.IntRange(1, 250_000), default=10, show_default=True, help="KES of the payment, if any."
)
@MERCHANT
@JSON
@pass_session
def trigger(session: Session, event: str, amount: int, merchant_id: str | None, *, as_json: bool) -> None:
    """Trigger an EVENT in the sandbox, with a payment from a simulated phone.

    Needs the running gateway with its worker and simulator, as started by `mpesa-gateway up`; webhook.test needs no
    simulator. Live data is not touched.
    """
    from mpesa_gateway.standalone.stage import UnexpectedAnswer
    from mpesa_gateway_webhooks.event_trigger import EventTrigger

    async def work(gateway: Gateway) -> TriggeredEvent:
        merchant = await merchant_of(gateway, merchant_id)
        try:
            return await EventTrigger(gateway, merchant, actor=actor()).make(event, amount)
        except UnexpectedAnswer as problem:
            raise CommandFailed(f"{event} was not triggered: {problem}") from None

    made = session.run(work)
    if as_json:
        print_json({"type": event, "event_id": made.event_id, "subject_id": made.subject_id})
    else:
        click.echo(f"{event} of {made.subject_id} has happened:", err=True)
        click.echo(made.event_id)


@webhooks.command()
@click.argument("event_ids", nargs=-1, metavar="[EVT_…]…")
@click.option("--since", metavar="TIME", help="All deliveries from this time on, such as 2026-11-23T08:00:00Z.")
@click.option("--until", metavar="TIME", help="With --since: only deliveries before this time.")
@click.option(
    "--status",
    type=click.Choice(["waiting", "pending", "delivered", "dead"]),
    help="With --since: only deliveries with this status, such as dead.",
)
@MERCHANT
@LIVE
@JSON
@pass_session
def replay(
    session: Session,
    event_ids: tuple[str, ...],
    since: str | None,
    until: str | None,
    status: str | None,
    merchant_id: str | None,
    *,
    is_live: bool,
    as_json: bool,
) -> None:
    """Send deliveries to the merchant's endpoint again: of these events, or all since a time.

    The webhook-id stays the same, so that the endpoint can detect duplicates.
    """
    from mpesa_gateway.security.scopes import Caller
    from mpesa_gateway_webhooks.deliveries import DeliveryService
    from mpesa_gateway_webhooks.tables import DeliveryRow

    if bool(event_ids) == (since is not None) or (event_ids and (until or status)):
        raise click.UsageError("name events (evt_…), or a time with --since, and not both")
    which = None if since is None else _window(since, until, status)
    env = env_of(is_live=is_live)

    async def work(gateway: Gateway) -> dict[str, Any]:
        merchant = await merchant_of(gateway, merchant_id)
        caller = Caller(merchant.merchant_id, "", frozenset(), env, by=actor())
        deliveries = gateway.port(DeliveryService)
        if which is not None:
            done = await deliveries.replay_many(caller, which)
            return {"replayed": done.replayed, "has_more": done.has_more}
        found: list[str] = []
        for event_id in event_ids:
            await deliveries.event(merchant.merchant_id, env, event_id)
            rows = await gateway.db.run(
                DeliveryRow.select(DeliveryRow.delivery_id)
                .where(
                    DeliveryRow.merchant_id == merchant.merchant_id,
                    DeliveryRow.env == env,
                    DeliveryRow.event_id == event_id,
                )
                .order_by(DeliveryRow.created_at)
                .order_by(DeliveryRow.delivery_id)
                .limit(100)
            )
            if not rows:
                raise CommandFailed(f"{event_id} has no delivery: the webhooks plugin was not enabled when it happened")
            found += [row["delivery_id"] for row in rows]
        for delivery_id in found:
            await deliveries.replay(caller, delivery_id)
        return {"replayed": len(found), "has_more": False}

    done = session.run(work)
    if as_json:
        print_json(done)
        return
    count = done["replayed"]
    click.echo(f"{count} {'delivery' if count == 1 else 'deliveries'} will be sent again.")
    if done["has_more"]:
        click.echo("There are more: run this again with a later --since.", err=True)


def _window(since: str, until: str | None, status: str | None) -> ReplayMany:
    from mpesa_gateway_webhooks.schemas import ReplayMany

    return msgspec.convert(
        {"since": read_time(since, "--since"), "until": until and read_time(until, "--until"), "status": status},
        ReplayMany,
    )


def _read_url(text: str) -> str:
    from mpesa_gateway.http.egress import check_url

    url = text if _SCHEME.match(text) else f"http://{text}"
    try:
        check_url(url, allow_loopback=True)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--forward-to") from None
    return url


def _kinds(gateway: Gateway, patterns: str) -> list[str]:
    known = sorted(
        event.kind for plugin in gateway.plugins for event in plugin.publishes if issubclass(event, PublicEvent)
    )
    found: set[str] = set()
    for pattern in (part.strip() for part in patterns.split(",") if part.strip()):
        fitting = {kind for kind in known if fnmatchcase(kind, pattern)}
        if not fitting:
            raise click.BadParameter(
                f"there is no event `{pattern}` (known: {', '.join(known)})", param_hint="--events"
            )
        found |= fitting
    if not found:
        raise click.BadParameter("name at least one event", param_hint="--events")
    return sorted(found)
