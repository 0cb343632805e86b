"""Asks before what cannot be undone is done."""

import sys

import rich_click as click

from mpesa_gateway.commands.session import CommandFailed

YES = click.option("--yes", is_flag=True, help="Do it without asking.")


def confirm(sentence: str, *, yes: bool) -> None:
    """Go on with ``yes``, or when the terminal's owner agrees. Raises click.Abort, or Failed without a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed(f"{sentence} This cannot be undone, and nobody is there to ask: add --yes")
    click.confirm(f"{sentence} This cannot be undone. Go on?", abort=True, err=True)
