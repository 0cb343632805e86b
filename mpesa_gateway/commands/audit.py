"""``mpesa-gateway audit``: verifies the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json
from mpesa_gateway.commands.session import Session, pass_session

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


@click.group()
def audit() -> None:
    """Work with the audit log."""


@audit.command()
@click.option("--noted", metavar="HEAD", help="The head that an earlier run printed: detects a log truncated since.")
@JSON
@pass_session
def verify(session: Session, noted: str | None, *, as_json: bool) -> None:
    """Check the digest chain of every entry; exit with 1, naming the entry, if one was changed or removed."""

    async def work(gateway: Gateway) -> tuple[str, int]:
        # The head first: entries added afterwards are not verified.
        return await gateway.audit.head(), await gateway.audit.verify(noted)

    try:
        head, count = session.run(work)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--noted") from None
    if as_json:
        print_json({"entries": count, "head": head})
        return
    click.echo(
        f"The audit log is whole: {count} {'entry' if count == 1 else 'entries'}, each chained to the one before."
    )
    click.echo(f"Keep this elsewhere, for `--noted` next time: {head}")
