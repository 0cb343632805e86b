"""Confirmation of irreversible commands."""

import sys

import rich_click as click

from mpesa_gateway.commands.session import CommandFailed

YES = click.option("--yes", is_flag=True, help="Do it without asking.")


def confirm(sentence: str, *, yes: bool) -> None:
    """Return with ``yes`` or after agreement. Raises click.Abort, or CommandFailed without a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed(f"{sentence} This cannot be undone, and there is no terminal to ask: add --yes")
    click.confirm(f"{sentence} This cannot be undone. Go on?", abort=True, err=True)
