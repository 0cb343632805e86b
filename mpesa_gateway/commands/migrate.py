"""``mpesa-gateway migrate``: brings the database to this release, or says whether it is."""

import rich_click as click

from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import Session, pass_session, reaching, run
from mpesa_gateway.db.migrator import Migration, pending
from mpesa_gateway.db.migrator import migrate as apply


@click.command()
@click.option("--check", is_flag=True, help="Apply nothing: list what is missing and exit with 1 if something is.")
@pass_session
@click.pass_context
def migrate(context: click.Context, session: Session, check: bool) -> None:
    """Apply the migrations of the kernel and of every enabled plugin."""
    gateway = Gateway(session.attached())
    found = run(_migrate(gateway, check=check))
    for migration in found:
        click.echo(f"{'missing' if check else 'applied'} {migration.owner}/{migration.name}")
    if not found:
        click.echo("Nothing to apply: the database is at this release.")
    elif check:
        context.exit(1)


async def _migrate(gateway: Gateway, *, check: bool) -> list[Migration]:
    async with reaching(gateway.config.database.url):
        await gateway.db.start()
    try:
        return await (pending if check else apply)(gateway.db, gateway.migrations)
    finally:
        await gateway.db.stop()
