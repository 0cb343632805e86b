"""``mpesa-gateway apikeys``: merchants' API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.commands.confirming import YES, confirm
from mpesa_gateway.commands.listing import JSON, print_json, show
from mpesa_gateway.commands.session import (
    MERCHANT,
    CommandFailed,
    Session,
    actor,
    merchant_named,
    merchant_of,
    pass_session,
)
from mpesa_gateway.secret import Secret

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.security.api_keys import ApiKey


@click.group()
def apikeys() -> None:
    """Create, list and revoke API keys."""


@apikeys.command()
@merchant_named
@click.option("--name", default="key", show_default=True, help="Name of the key, 1 to 100 characters.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help="A scope of the key, such as payments:read; repeat for more. Default: every scope but admin.",
)
@click.option("--live", is_flag=True, help="A key for real money (sk_live_…) instead of the sandbox (sk_test_…).")
@click.option("--days", type=click.IntRange(1, 3650), help="Days until it expires; default: never.")
@JSON
@pass_session
def create(
    session: Session,
    merchant_id: str | None,
    name: str,
    scopes: tuple[str, ...],
    live: bool,
    days: int | None,
    as_json: bool,
) -> None:
    """Create a key for a merchant and print it. Only its digest is stored."""
    if not 1 <= len(name) <= 100:
        raise click.BadParameter("give a name of 1 to 100 characters", param_hint="--name")

    async def work(gateway: Gateway) -> tuple[ApiKey, Secret]:
        merchant = await merchant_of(gateway, merchant_id)
        if not merchant.is_active:
            raise CommandFailed(f"merchant {merchant.merchant_id} is not active, so its keys would be refused")
        try:
            chosen = gateway.scopes.named(scopes) if scopes else gateway.scopes.of_merchants
        except ValueError as problem:
            raise click.BadParameter(str(problem), param_hint="--scope") from None
        return await gateway.api_keys.create(
            merchant.merchant_id,
            name=name,
            scopes=chosen,
            env="live" if live else "sandbox",
            expires_at=gateway.clock.now() + timedelta(days=days) if days else None,
            actor=actor(),
        )

    key, secret = session.run(work)
    if as_json:
        print_json({"key_id": key.key_id, "key": secret.reveal(), "scopes": key.scopes, "expires_at": key.expires_at})
        return
    click.echo(
        f"Created {key.key_id} with {', '.join(key.scopes)}. This is the only time that the key is shown:", err=True
    )
    click.echo(secret.reveal())


@apikeys.command("list")
@merchant_named
@JSON
@pass_session
def list_(session: Session, merchant_id: str | None, *, as_json: bool) -> None:
    """List a merchant's keys, newest first, without their secrets."""

    async def work(gateway: Gateway) -> list[ApiKey]:
        return await gateway.api_keys.list((await merchant_of(gateway, merchant_id)).merchant_id)

    show(
        ("key_id", "name", "env", "state", "last_used_at", "scopes"),
        [
            (
                key.key_id,
                key.name,
                key.env,
                _state(key),
                key.last_used_at,
                key.scopes,
            )
            for key in session.run(work)
        ],
        as_json=as_json,
    )


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {rfc3339(key.revoked_at)}"
    return f"until {rfc3339(key.expires_at)}" if key.expires_at else "active"


@apikeys.command()
@click.argument("names", metavar="[MER_…] KEY_…", nargs=-1, required=True)
@MERCHANT
@YES
@pass_session
def revoke(session: Session, names: tuple[str, ...], merchant_id: str | None, *, yes: bool) -> None:
    """Revoke a merchant's key."""
    *named, key_id = names
    if len(named) > 1:
        raise click.UsageError("name at most one merchant and one key")
    confirm(f"Calls with {key_id} will be refused.", yes=yes)

    async def work(gateway: Gateway) -> ApiKey:
        merchant = await merchant_of(gateway, named[0] if named else merchant_id)
        return await gateway.api_keys.revoke(merchant.merchant_id, key_id, actor=actor())

    click.echo(f"Revoked {session.run(work).key_id}: it is refused from now on.")
