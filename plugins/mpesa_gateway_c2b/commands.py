"""The commands ``mpesa-gateway c2b`` and ``mpesa-gateway accounts``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json, show
from mpesa_gateway.commands.session import LIVE, MERCHANT, Session, actor, env_of, merchant_of, pass_session
from mpesa_gateway_c2b.schemas import C2bRegistered, C2bRemoved, C2bRequest, C2bView

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.security.scopes import Caller
    from mpesa_gateway_c2b.account_schemas import AccountView, AccountWithEntries

_SHORTCODE = click.option("--shortcode", metavar="NUMBER", help="The paybill or till; by default the default one.")


async def _caller(gateway: Gateway, merchant_id: str | None, *, is_live: bool) -> Caller:
    from mpesa_gateway.security.scopes import Caller

    merchant = await merchant_of(gateway, merchant_id)
    return Caller(merchant.merchant_id, "", frozenset(), env_of(is_live=is_live), by=actor())


def _describe(view: C2bView) -> None:
    click.echo(f"{view.shortcode} ({view.env}): {view.state}. {view.meaning}.")
    click.echo(f"validation {view.validation}, response_type {view.response_type}, version {view.version or 'unknown'}")


@click.group()
def c2b() -> None:
    """Register shortcodes for payer-initiated payments, and show their registration."""


@c2b.command()
@click.argument("shortcode")
@click.option("--validation", type=click.Choice(["accept", "rules"]), default="accept", show_default=True)
@click.option(
    "--response-type",
    type=click.Choice(["Completed", "Cancelled"]),
    default="Completed",
    show_default=True,
    help="What Safaricom does if the gateway does not answer a validation request.",
)
@MERCHANT
@LIVE
@JSON
@pass_session
def register(
    session: Session,
    shortcode: str,
    validation: str,
    response_type: str,
    merchant_id: str | None,
    *,
    is_live: bool,
    as_json: bool,
) -> None:
    """Register the addresses of SHORTCODE, a paybill or till. Live takes one registration."""
    from mpesa_gateway_c2b.registration import C2bRegistrations

    async def work(gateway: Gateway) -> C2bRegistered:
        caller = await _caller(gateway, merchant_id, is_live=is_live)
        wanted = C2bRequest(response_type=response_type, validation=validation)
        return await gateway.port(C2bRegistrations).register(caller, shortcode, wanted)

    found = session.run(work)
    if as_json:
        print_json(found)
    else:
        _describe(found)


@c2b.command("show")
@click.argument("shortcode")
@MERCHANT
@LIVE
@JSON
@pass_session
def show_registration(
    session: Session, shortcode: str, merchant_id: str | None, *, is_live: bool, as_json: bool
) -> None:
    """Show the registration of SHORTCODE, and the time of its last confirmation."""
    from mpesa_gateway_c2b.registration import C2bRegistrations

    async def work(gateway: Gateway) -> C2bView:
        caller = await _caller(gateway, merchant_id, is_live=is_live)
        return await gateway.port(C2bRegistrations).get(caller, shortcode)

    found = session.run(work)
    if as_json:
        print_json(found)
    else:
        _describe(found)
        click.echo(f"last confirmation: {found.last_confirmation_at or 'none'}")


@c2b.command()
@click.argument("shortcode")
@MERCHANT
@LIVE
@JSON
@pass_session
def remove(session: Session, shortcode: str, merchant_id: str | None, *, is_live: bool, as_json: bool) -> None:
    """Say what people have to do on Safaricom's portal to remove the registration of SHORTCODE."""
    from mpesa_gateway_c2b.registration import C2bRegistrations

    async def work(gateway: Gateway) -> C2bRemoved:
        caller = await _caller(gateway, merchant_id, is_live=is_live)
        return await gateway.port(C2bRegistrations).remove(caller, shortcode)

    found = session.run(work)
    if as_json:
        print_json(found)
        return
    for step in found.to_do:
        click.echo(f"- {step}")


@click.group()
def accounts() -> None:
    """Show account numbers and the money that they have received."""


@accounts.command("list")
@_SHORTCODE
@MERCHANT
@LIVE
@JSON
@pass_session
def list_(session: Session, shortcode: str | None, merchant_id: str | None, *, is_live: bool, as_json: bool) -> None:
    """List a merchant's newest 100 account numbers."""
    from mpesa_gateway_c2b.account_schemas import AccountQuery
    from mpesa_gateway_c2b.accounts import AccountNumbers

    async def work(gateway: Gateway) -> list[AccountView]:
        caller = await _caller(gateway, merchant_id, is_live=is_live)
        return (await gateway.port(AccountNumbers).page(caller, AccountQuery(limit=100, shortcode=shortcode))).data

    rows = session.run(work)
    show(
        ("shortcode", "number", "state", "active", "expected", "received"),
        [(one.shortcode, one.number, one.state, one.active, one.expected, one.received) for one in rows],
        as_json=as_json,
        absent="-",
    )


@accounts.command("show")
@click.argument("number")
@_SHORTCODE
@MERCHANT
@LIVE
@JSON
@pass_session
def show_account(
    session: Session, number: str, shortcode: str | None, merchant_id: str | None, *, is_live: bool, as_json: bool
) -> None:
    """Show an account number with its money."""
    from mpesa_gateway_c2b.accounts import AccountNumbers

    async def work(gateway: Gateway) -> AccountWithEntries:
        caller = await _caller(gateway, merchant_id, is_live=is_live)
        return await gateway.port(AccountNumbers).get(caller, number, shortcode)

    found = session.run(work)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.number} at {found.shortcode}: {found.state}, received {found.received}")
    for one in found.transactions:
        click.echo(f"  {one.at:%Y-%m-%d %H:%M} UTC  {one.amount:>12}  {one.receipt or one.id}")
