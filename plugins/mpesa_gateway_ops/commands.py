"""``mpesa-gateway people``: persons of the host and members of merchants."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.confirming import YES, confirm
from mpesa_gateway.commands.listing import JSON, show
from mpesa_gateway.commands.session import CommandFailed, Session, actor, pass_session
from mpesa_gateway.permissions import MerchantRole, Role
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.passwords import SHORTEST

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway_ops.memberships import Member
    from mpesa_gateway_ops.people import Person

_PASSWORD_STDIN = click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of standard input; do not ask for it."
)
_MERCHANT = click.option("--merchant", metavar="MER_…", help="The merchant; without it, the host.")
_ROLE = click.option(
    "--role",
    required=True,
    type=click.Choice([*dict.fromkeys([*(role.value for role in Role), *(role.value for role in MerchantRole)])]),
    help="Of the host: viewer, operator, admin. Of a merchant: owner, manager, accountant, cashier, approver, viewer.",
)


@click.group()
def people() -> None:
    """Invite, list and remove the persons who use the pages under /ops."""


@people.command()
@click.argument("email")
@_ROLE
@_MERCHANT
@pass_session
def invite(session: Session, email: str, role: str, merchant: str | None) -> None:
    """Print a link with which EMAIL joins. It works once."""
    from mpesa_gateway_ops.invitations import Invitations

    chosen = _role(role, merchant)

    async def work(gateway: Gateway) -> str:
        if merchant is not None:
            await gateway.merchants.require(merchant)
        token = await gateway.port(Invitations).invite(email, actor=actor(), merchant_id=merchant, role=chosen)
        return gateway.url(f"/ops/join/{token.reveal()}")

    link = session.run(work)
    click.echo(f"Send this link to {email.strip().lower()}; it expires and works once:", err=True)
    click.echo(link)


@people.command()
@click.argument("email")
@_ROLE
@_PASSWORD_STDIN
@pass_session
def create(session: Session, email: str, role: str, password_stdin: bool) -> None:
    """Create a person of the host, with a password of at least 12 characters."""
    from mpesa_gateway_ops.people import People

    chosen = _role(role, None)
    password = _password(from_stdin=password_stdin)

    async def work(gateway: Gateway) -> Person:
        host_role = chosen if isinstance(chosen, Role) else None
        return await gateway.port(People).create(email, password, role=host_role, actor=actor())

    person = session.run(work)
    click.echo(f"Created `{person.email}` ({role}), who can now sign in at /ops/login.", err=True)
    click.echo(person.person_id)


@people.command("password")
@click.argument("email")
@_PASSWORD_STDIN
@pass_session
def password_(session: Session, email: str, password_stdin: bool) -> None:
    """Set a new password for EMAIL and end all open sessions."""
    from mpesa_gateway_ops.people import People

    password = _password(from_stdin=password_stdin)

    async def work(gateway: Gateway) -> None:
        await gateway.port(People).set_password(email, password, actor=actor())

    session.run(work)
    click.echo(f"Set a new password for `{email}` and ended all open sessions.")


@people.command("list")
@_MERCHANT
@JSON
@pass_session
def list_(session: Session, *, merchant: str | None, as_json: bool) -> None:
    """List all persons, deactivated ones included; with --merchant, its members."""
    from mpesa_gateway_ops.memberships import Memberships
    from mpesa_gateway_ops.people import People

    async def persons(gateway: Gateway) -> list[Person]:
        return await gateway.port(People).list()

    async def members(gateway: Gateway) -> list[Member]:
        return list(await gateway.port(Memberships).list(merchant or ""))

    head = ("person_id", "email", "name", "role", "second_factor", "active", "created_at", "last_login_at")
    rows = (
        [
            (
                one.person_id,
                one.email,
                one.name,
                one.role.value,
                one.has_factor,
                True,
                one.created_at,
                one.last_login_at,
            )
            for one in session.run(members)
        ]
        if merchant
        else [
            (
                *(
                    one.person_id,
                    one.email,
                    one.name,
                    one.role.value if one.role else "none",
                    one.has_factor,
                    one.is_active,
                ),
                *(one.created_at, one.last_login_at),
            )
            for one in session.run(persons)
        ]
    )
    show(head, rows, as_json=as_json)


@people.command("role")
@click.argument("email")
@_ROLE
@_MERCHANT
@pass_session
def role_(session: Session, email: str, role: str, merchant: str | None) -> None:
    """Change the role of EMAIL, from the next page on. With --merchant, also add a member."""
    from mpesa_gateway.errors import Conflict
    from mpesa_gateway_ops.memberships import Memberships
    from mpesa_gateway_ops.people import People

    chosen = _role(role, merchant)

    async def work(gateway: Gateway) -> None:
        if isinstance(chosen, Role):
            await gateway.port(People).set_role(email, chosen, actor=actor())
            return
        person, memberships = await gateway.port(People).find(email), gateway.port(Memberships)
        try:
            await memberships.add(merchant or "", person.person_id, chosen, actor=actor())
        except Conflict:
            await memberships.set_role(merchant or "", person.person_id, chosen, actor=actor())

    session.run(work)
    click.echo(f"`{email}` is {role} now.")


@people.command()
@click.argument("email")
@_MERCHANT
@YES
@pass_session
def remove(session: Session, email: str, merchant: str | None, *, yes: bool) -> None:
    """Remove EMAIL from a merchant; without --merchant, from the host and all merchants."""
    from mpesa_gateway_ops.memberships import Memberships
    from mpesa_gateway_ops.people import People

    confirm(f"{email} will no longer be able to {'act for this merchant' if merchant else 'sign in'}.", yes=yes)

    async def work(gateway: Gateway) -> list[str]:
        person = await gateway.port(People).find(email)
        if merchant:
            await gateway.port(Memberships).remove(merchant, person.person_id, actor=actor())
        else:
            await gateway.port(Memberships).deactivate(person.person_id, actor=actor())
        keys = await gateway.api_keys.of_maker(f"person:{person.person_id}")
        return [f"{key.key_id} of {key.merchant_id}" for key in keys if merchant in {None, key.merchant_id}]

    keys = session.run(work)
    click.echo(f"Removed `{email}`.", err=True)
    if keys:
        click.echo("API keys that this person created and may know (`mpesa-gateway apikeys revoke`):", err=True)
        click.echo("\n".join(keys))


@people.command()
@click.argument("email")
@click.option("--second-factor", is_flag=True, help="Remove the second factor too.")
@YES
@pass_session
def reset(session: Session, email: str, *, second_factor: bool, yes: bool) -> None:
    """Print a link with which EMAIL sets a new password."""
    from mpesa_gateway_ops.invitations import Invitations
    from mpesa_gateway_ops.people import People
    from mpesa_gateway_ops.second_factors import SecondFactors

    confirm(f"The holder of the link can sign in as {email}.", yes=yes)

    async def work(gateway: Gateway) -> str:
        person = await gateway.port(People).find(email)
        if not person.is_active:
            raise CommandFailed(f"{email} is not active")
        if second_factor and person.has_factor:
            await gateway.port(SecondFactors).reset(person.person_id, actor=actor())
        token = await gateway.port(Invitations).reset_password(person, actor=actor())
        return gateway.url(f"/ops/join/{token.reveal()}")

    click.echo(session.run(work))


def _role(role: str, merchant: str | None) -> Role | MerchantRole:
    kind: type[Role | MerchantRole] = Role if merchant is None else MerchantRole
    try:
        return kind(role)
    except ValueError:
        whose = "the host" if merchant is None else "a merchant"
        more = "; add --merchant" if merchant is None else ""
        raise click.UsageError(f"{role} is no role of {whose}: choose {', '.join(kind)}{more}") from None


def _password(*, from_stdin: bool) -> Secret:
    if from_stdin:
        text = sys.stdin.readline().removeprefix("\ufeff").rstrip("\r\n")
    else:
        text = str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    if len(text) < SHORTEST:
        raise click.UsageError(f"the password has {len(text)} characters: take at least {SHORTEST}")
    return Secret(text)
