"""The commands ``mpesa-gateway receivers``: owners and users of live paybills and tills."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, show
from mpesa_gateway.commands.session import Session, actor, merchant_named, merchant_of, pass_session

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway_credentials.ownership import ReceiverUse


@click.group()
def receivers() -> None:
    """Show and change who owns a live paybill or till.

    The owner is the merchant with whose credentials Safaricom first accepted a call about it. Only the owner gets
    statements. Other merchants need `allow` to take payments there.
    """


@receivers.command("list")
@click.argument("number")
@JSON
@pass_session
def list_(session: Session, number: str, *, as_json: bool) -> None:
    """List the merchants with live credentials for NUMBER, a paybill or till."""
    from mpesa_gateway_credentials.ownership import ReceiverOwnership

    async def work(gateway: Gateway) -> list[ReceiverUse]:
        return await gateway.port(ReceiverOwnership).users(number)

    show(
        ("merchant_id", "name", "is_owner", "may_use", "retired"),
        [
            (each.merchant_id, each.name, each.is_owner, each.may_use, each.retired_at is not None)
            for each in session.run(work)
        ],
        as_json=as_json,
    )


@receivers.command()
@click.argument("number")
@merchant_named
@pass_session
def allow(session: Session, number: str, merchant_id: str | None) -> None:
    """Allow a merchant to take payments at NUMBER, which another merchant owns."""
    named = _set_use(session, number, merchant_id, is_allowed=True)
    click.echo(f"{named} may take payments at {number}.")


@receivers.command()
@click.argument("number")
@merchant_named
@pass_session
def refuse(session: Session, number: str, merchant_id: str | None) -> None:
    """Revoke `allow`: no new payments of this merchant at NUMBER."""
    named = _set_use(session, number, merchant_id, is_allowed=False)
    click.echo(f"{named} may take no new payments at {number}.")


@receivers.command()
@click.argument("number")
@merchant_named
@pass_session
def move(session: Session, number: str, merchant_id: str | None) -> None:
    """Make a merchant the owner of NUMBER; it gets the statements from now on."""
    from mpesa_gateway_credentials.ownership import ReceiverOwnership

    async def work(gateway: Gateway) -> str:
        owner = (await merchant_of(gateway, merchant_id)).merchant_id
        await gateway.port(ReceiverOwnership).move_receiver(number, owner, actor=actor())
        return owner

    click.echo(f"{number} belongs to {session.run(work)}.")


def _set_use(session: Session, number: str, merchant_id: str | None, *, is_allowed: bool) -> str:
    from mpesa_gateway_credentials.ownership import ReceiverOwnership

    async def work(gateway: Gateway) -> str:
        named = (await merchant_of(gateway, merchant_id)).merchant_id
        await gateway.port(ReceiverOwnership).allow_use(number, named, is_allowed=is_allowed, actor=actor())
        return named

    return session.run(work)
