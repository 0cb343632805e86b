"""``mpesa-gateway privacy``: erasure of payers' phone numbers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.confirming import YES, confirm
from mpesa_gateway.commands.listing import JSON, print_json
from mpesa_gateway.commands.session import Session, actor, pass_session
from mpesa_gateway.phone import Msisdn

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.privacy import ErasureReport


@click.group()
def privacy() -> None:
    """Erase payers' phone numbers on request."""


@privacy.command()
@click.argument("phone", required=False)
@click.option("--merchant", "merchant_id", metavar="MER_…", help="Only from this merchant's records.")
@click.option(
    "--before",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Keep records changed on this day (UTC) or later; default: 48 hours ago.",
)
@click.option("--dry-run", is_flag=True, help="Only count what would be erased, and name what would be left.")
@YES
@JSON
@pass_session
def erase(
    session: Session,
    phone: str | None,
    merchant_id: str | None,
    before: datetime | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase the number PHONE from old, settled records. Payments stay.

    Without PHONE it is prompted for; with - it is read from the first line of standard input. Both keep it out of the
    shell's history and the list of processes.
    """
    from mpesa_gateway.privacy import Privacy

    if phone is None:
        phone = click.prompt("Phone number", err=True) if sys.stdin.isatty() else "-"
    number = _read(sys.stdin.readline() if phone == "-" else phone)
    whose = f"the records of {merchant_id}" if merchant_id else "every merchant's records"
    if not dry_run:
        confirm(f"{number.masked} will be erased from {whose}.", yes=yes)

    async def work(gateway: Gateway) -> ErasureReport:
        return await Privacy(gateway).erase(
            number,
            merchant_id=merchant_id,
            before=before and before.replace(tzinfo=UTC),
            actor=actor(),
            is_rehearsal=dry_run,
        )

    done = session.run(work)
    if as_json:
        counts = {"phone": number.masked, "would_erase" if dry_run else "erased": done.erased, "left": done.left}
        print_json(counts)
        return
    show(done, number, is_rehearsal=dry_run)


def _read(text: str) -> Msisdn:
    try:
        return Msisdn.parse(text.strip())
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="PHONE") from None


def show(done: ErasureReport, number: Msisdn, *, is_rehearsal: bool) -> None:
    verb = "would be erased" if is_rehearsal else "erased"
    for what, count in sorted(done.erased.items()):
        if count:
            click.echo(f"{count:>7} {what} {verb}")
    for left in done.left:
        click.echo(f"   left {left.subject_id}: {left.why}")
    if not done.erased.total() and not done.left:
        click.echo(f"{number.masked} is in no record.")
    elif done.left:
        click.echo("Run this again once what was left has settled.", err=True)
