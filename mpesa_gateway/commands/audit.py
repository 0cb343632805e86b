"""``mpesa-gateway audit``: proves that nobody changed the record of who did what."""

import rich_click as click

from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import Session, pass_session


@click.group()
def audit() -> None:
    """Work with the audit log."""


@audit.command()
@pass_session
def verify(session: Session) -> None:
    """Check the digest chain of every entry; exit with 1, naming the entry, if one was changed or removed."""

    async def work(gateway: Gateway) -> int:
        return await gateway.audit.verify()

    count = session.run(work)
    click.echo(
        f"The audit log is whole: {count} {'entry' if count == 1 else 'entries'}, each chained to the one before."
    )
