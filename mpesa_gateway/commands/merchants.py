"""``mpesa-gateway merchants``: the accounts that own keys, payments and endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.confirming import YES, confirm
from mpesa_gateway.commands.listing import JSON, print_json, show
from mpesa_gateway.commands.session import Session, actor, pass_session

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.security.merchants import Merchant


@click.group()
def merchants() -> None:
    """Create, list and deactivate merchants."""


@merchants.command()
@click.argument("name")
@JSON
@pass_session
def create(session: Session, name: str, *, as_json: bool) -> None:
    """Create a merchant called NAME and print its id."""
    name = name.strip()
    if not 1 <= len(name) <= 100:
        raise click.BadParameter("give a name of 1 to 100 characters", param_hint="NAME")

    async def work(gateway: Gateway) -> Merchant:
        return await gateway.merchants.create(name, actor=actor())

    merchant = session.run(work)
    if as_json:
        print_json(merchant)
        return
    click.echo(
        f"Created `{merchant.name}`. Make a key with `mpesa-gateway apikeys create {merchant.merchant_id}`.", err=True
    )
    click.echo(merchant.merchant_id)


@merchants.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many at most.")
@JSON
@pass_session
def list_(session: Session, limit: int, *, as_json: bool) -> None:
    """List merchants, newest first."""

    async def work(gateway: Gateway) -> Sequence[Merchant]:
        return (await gateway.merchants.page(limit)).rows

    show(
        ("merchant_id", "name", "envs", "active", "created_at"),
        [(each.merchant_id, each.name, list(each.envs), each.is_active, each.created_at) for each in session.run(work)],
        as_json=as_json,
    )


@merchants.command()
@click.argument("merchant_id", metavar="MER_…")
@YES
@pass_session
def deactivate(session: Session, merchant_id: str, *, yes: bool) -> None:
    """Refuse the keys of a merchant from now on. Its payments and webhooks stay."""
    confirm(f"Every key of {merchant_id} will be refused.", yes=yes)

    async def work(gateway: Gateway) -> Merchant:
        return await gateway.merchants.deactivate(merchant_id, actor=actor())

    click.echo(f"Deactivated `{session.run(work).name}`: its keys are refused from now on.")
