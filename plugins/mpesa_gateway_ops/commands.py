"""``mpesa-gateway operators``: accounts for the pages under /ops."""

import sys

import rich_click as click

from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.confirming import YES, confirm
from mpesa_gateway.commands.listing import JSON, show
from mpesa_gateway.commands.session import Session, actor, pass_session
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.operators import SHORTEST, Operator, Operators

_PASSWORD_STDIN = click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of standard input; do not ask for it."
)


_ROLES = click.Choice([role.value for role in Role])


@click.group()
def operators() -> None:
    """Create, list and deactivate operators, the accounts for the pages under /ops."""


@operators.command()
@click.argument("name")
@click.option(
    "--role",
    type=_ROLES,
    default=Role.OPERATOR.value,
    show_default=True,
    help="viewer looks; operator acts on payments and webhooks; admin changes merchants, keys and secrets too.",
)
@_PASSWORD_STDIN
@pass_session
def create(session: Session, name: str, role: str, password_stdin: bool) -> None:
    """Create an operator called NAME, with a password of at least 12 characters."""
    password = _password(from_stdin=password_stdin)

    async def work(gateway: Gateway) -> Operator:
        return await gateway.port(Operators).create(name, password, role=Role(role), actor=actor())

    operator = session.run(work)
    click.echo(f"Created `{operator.name}` ({operator.role}), who can now sign in at /ops/login.", err=True)
    click.echo(operator.operator_id)


@operators.command("list")
@JSON
@pass_session
def list_(session: Session, *, as_json: bool) -> None:
    """List all operators, deactivated ones included."""

    async def work(gateway: Gateway) -> list[Operator]:
        return await gateway.port(Operators).list()

    show(
        ("operator_id", "name", "role", "active", "created_at", "last_login_at"),
        [
            (
                each.operator_id,
                each.name,
                each.role.value,
                each.is_active,
                each.created_at,
                each.last_login_at,
            )
            for each in session.run(work)
        ],
        as_json=as_json,
    )


@operators.command("password")
@click.argument("name")
@_PASSWORD_STDIN
@pass_session
def password_(session: Session, name: str, password_stdin: bool) -> None:
    """Set a new password for NAME and end all open sessions."""
    password = _password(from_stdin=password_stdin)

    async def work(gateway: Gateway) -> None:
        await gateway.port(Operators).set_password(name, password, actor=actor())

    session.run(work)
    click.echo(f"Set a new password for `{name}` and ended all open sessions.")


@operators.command("role")
@click.argument("name")
@click.argument("role", type=_ROLES)
@pass_session
def role_(session: Session, name: str, role: str) -> None:
    """Change the role of NAME, from the next page on."""

    async def work(gateway: Gateway) -> None:
        await gateway.port(Operators).set_role(name, Role(role), actor=actor())

    session.run(work)
    click.echo(f"`{name}` is {role} now.")


@operators.command()
@click.argument("name")
@YES
@pass_session
def deactivate(session: Session, name: str, *, yes: bool) -> None:
    """Deactivate NAME and end all open sessions."""
    confirm(f"{name} will no longer be able to sign in.", yes=yes)

    async def work(gateway: Gateway) -> None:
        await gateway.port(Operators).deactivate(name, actor=actor())

    session.run(work)
    click.echo(f"Deactivated `{name}` and ended all open sessions.")


def _password(*, from_stdin: bool) -> Secret:
    if from_stdin:
        text = sys.stdin.readline().removeprefix("\ufeff").rstrip("\r\n")
    else:
        text = str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    if len(text) < SHORTEST:
        raise click.UsageError(f"the password has {len(text)} characters: take at least {SHORTEST}")
    return Secret(text)
