"""``mpesa-gateway migrate``: applies migrations, or lists pending ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json
from mpesa_gateway.commands.session import Session, pass_session, reaching, run

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.db.migrator import Migration


@click.command()
@click.option("--check", is_flag=True, help="Apply nothing: list pending migrations and exit with 1 if there are any.")
@JSON
@pass_session
@click.pass_context
def migrate(context: click.Context, session: Session, *, check: bool, as_json: bool) -> None:
    """Apply the migrations of the kernel and of every enabled plugin."""
    from mpesa_gateway.app import Gateway

    gateway = Gateway(session.attached())
    found = run(_migrate(gateway, check=check))
    verb = "missing" if check else "applied"
    names = [f"{migration.owner}/{migration.name}" for migration in found]
    if as_json:
        print_json({verb: names})
    else:
        for name in names:
            click.echo(f"{verb} {name}")
    if not found and not as_json:
        click.echo("Nothing to apply: the database is at this release.")
    if found and check:
        context.exit(1)


async def _migrate(gateway: Gateway, *, check: bool) -> list[Migration]:
    from mpesa_gateway.db.migrator import pending
    from mpesa_gateway.owner import make_running_role, update_schema

    database = gateway.config.database
    if not check:
        async with reaching(database.owner_url or database.url):
            if made := await make_running_role(database):
                click.echo(f"made the role {made}", err=True)
    async with reaching(database.url):
        await gateway.db.start()
    try:
        if check:
            return await pending(gateway.db, gateway.migrations)
        return await update_schema(gateway)
    finally:
        await gateway.db.stop()
