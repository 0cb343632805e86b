"""The command ``mpesa-gateway reconcile``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json
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

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway_reconciliation.schemas import RunView

_POLL = 0.5
"""Seconds between two reads of a running run."""

_FINDINGS = ("already_known", "recovered", "not_found", "mismatched", "ambiguous", "malformed")


@click.command()
@click.option(
    "--start", metavar="TIME", help="Start of the window: at most 48 hours ago, by default two hours before the end."
)
@click.option("--end", metavar="TIME", help="End of the window, such as 2026-11-23T08:00:00Z; by default now.")
@click.option("--shortcode", metavar="NUMBER", help="The number that payers pay; by default the default one.")
@MERCHANT
@LIVE
@JSON
@pass_session
def reconcile(
    session: Session,
    start: str | None,
    end: str | None,
    shortcode: str | None,
    merchant_id: str | None,
    *,
    is_live: bool,
    as_json: bool,
) -> None:
    """Read M-Pesa's statement of a merchant's shortcode and match its lines; exits with 1 if the run fails.

    Payments are completed as by the regular runs, which the worker starts every 15 minutes.
    """
    from mpesa_gateway.security.scopes import Caller
    from mpesa_gateway_reconciliation.run_reader import RunReader
    from mpesa_gateway_reconciliation.schemas import Window
    from mpesa_gateway_reconciliation.service import ReconciliationService

    window = Window(
        start=None if start is None else read_time(start, "--start"),
        end=None if end is None else read_time(end, "--end"),
        shortcode=shortcode,
    )

    env = env_of(is_live=is_live)

    async def work(gateway: Gateway) -> RunView:
        merchant = await merchant_of(gateway, merchant_id)
        caller = Caller(merchant.merchant_id, "", frozenset(), env, by=actor())
        service = gateway.port(ReconciliationService)
        run = await service.run_now(caller, window)
        while run.status == "running":
            # The run is a task of this process.
            await asyncio.sleep(_POLL)
            run = await gateway.port(RunReader).get(merchant.merchant_id, env, run.id)
        return run

    run = session.run(work)
    if as_json:
        print_json(run)
    else:
        counts = ", ".join(f"{getattr(run, name)} {name.replace('_', ' ')}" for name in _FINDINGS if getattr(run, name))
        click.echo(f"{run.id} {run.status}: {run.lines} lines ({counts or 'nothing to match'})")
    if run.status == "failed":
        raise CommandFailed(f"the statement could not be read: {run.error}")
