"""What a command shows: a table for people, tab-separated lines for a pipe, and JSON for programs."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from mpesa_gateway.clock import rfc3339

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
"""The option of every command that shows something."""


def show(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], *, as_json: bool = False, absent: str = "never"
) -> None:
    """Print rows under headings; to a pipe or a file as one tab-separated line each, headings first.

    With ``as_json`` one list of objects. Values are text, numbers, truths, times, lists, and None: ``absent`` in text.
    """
    if as_json:
        print_json([dict(zip(headings, row, strict=True)) for row in rows])
        return
    lines = [[_text(value, absent) for value in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        for line in (headings, *lines):
            click.echo("\t".join(line))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table, markup=False)


def print_json(value: Any) -> None:
    """Print a value as JSON, in lines that can be read too."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode())


def print_json_line(value: Any) -> None:
    """Print a value as JSON on one line, for those who read one thing after the other."""
    click.echo(msgspec.json.encode(value, enc_hook=str).decode())


def _text(value: Any, absent: str) -> str:
    if value is None:
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value)
