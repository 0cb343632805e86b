"""The commands ``mpesa-gateway shortcodes``: a merchant's shortcodes, and which one is the default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, show
from mpesa_gateway.commands.session import LIVE, MERCHANT, Session, actor, env_of, merchant_of, pass_session

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.security.scopes import Caller
    from mpesa_gateway_credentials.api import MpesaCredentials
    from mpesa_gateway_credentials.schemas import RetiredView

_SHOWN = ("shortcode", "kind", "name", "is_default", "verified_at", "retired_at")


@click.group()
def shortcodes() -> None:
    """Show a merchant's shortcodes, choose the default one and retire one.

    Credentials are stored with the API or on the pages, not on the command line.
    """


@shortcodes.command("list")
@MERCHANT
@LIVE
@JSON
@pass_session
def list_(session: Session, merchant_id: str | None, *, is_live: bool, as_json: bool) -> None:
    """List the shortcodes of a merchant: active ones first, the default one at the top."""
    from mpesa_gateway_credentials.reader import CredentialReader

    async def work(gateway: Gateway) -> list[MpesaCredentials]:
        merchant = await merchant_of(gateway, merchant_id)
        found = await gateway.port(CredentialReader).shortcodes(merchant.merchant_id, env_of(is_live=is_live))
        return sorted(found, key=lambda each: not each.is_default)

    rows = [tuple(getattr(each, name) for name in _SHOWN) for each in session.run(work)]
    show(_SHOWN, rows, as_json=as_json, absent="-")


@shortcodes.command()
@click.argument("number")
@MERCHANT
@LIVE
@pass_session
def default(session: Session, number: str, merchant_id: str | None, *, is_live: bool) -> None:
    """Make NUMBER the default: payments that name no shortcode use it."""
    from mpesa_gateway_credentials.service import CredentialStore

    async def work(gateway: Gateway) -> None:
        caller = await _caller(gateway, merchant_id, is_live=is_live)
        await gateway.port(CredentialStore).make_default(caller, number)

    session.run(work)
    click.echo(f"{number} is the {env_of(is_live=is_live)} default.")


@shortcodes.command()
@click.argument("number")
@MERCHANT
@LIVE
@pass_session
def retire(session: Session, number: str, merchant_id: str | None, *, is_live: bool) -> None:
    """Retire NUMBER: no new payments. Open ones still end."""
    from mpesa_gateway_credentials.service import CredentialStore

    async def work(gateway: Gateway) -> RetiredView:
        return await gateway.port(CredentialStore).retire(await _caller(gateway, merchant_id, is_live=is_live), number)

    pending = ", ".join(f"{count} {what}" for what, count in session.run(work).open.items())
    click.echo(f"{number} is retired: no new payments. Still open: {pending}.")


async def _caller(gateway: Gateway, merchant_id: str | None, *, is_live: bool) -> Caller:
    from mpesa_gateway.security.scopes import Caller

    merchant = await merchant_of(gateway, merchant_id)
    return Caller(merchant.merchant_id, "", frozenset(), env_of(is_live=is_live), by=actor())
