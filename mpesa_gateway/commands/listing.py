"""Output of commands: a table on a terminal, tab-separated lines for a pipe, or JSON."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import rich_click as click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mpesa_gateway.clock import rfc3339

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def show(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], *, as_json: bool = False, absent: str = "never"
) -> None:
    """Print rows as a table on a terminal, as tab-separated lines elsewhere, or as a JSON list of objects.

    ``absent`` is the text for None.
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
    if lines and _width(headings, lines) > console.width:
        # A folded id cannot be copied.
        for number, line in enumerate(lines):
            click.echo("\n" * bool(number) + "\n".join(_pairs(headings, line)))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table, markup=False)


def show_fields(fields: Mapping[str, Any], *, absent: str = "-") -> None:
    """Print one line for each field, with aligned values."""
    click.echo("\n".join(_pairs([*fields], [_text(value, absent) for value in fields.values()])))


def _pairs(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    width = max(map(len, names), default=0)
    return [f"{name:<{width}}  {text}".rstrip() for name, text in zip(names, texts, strict=True)]


def _width(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    columns = zip(headings, *lines, strict=True)
    return sum(max(map(cell_len, column)) + 1 for column in columns)


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode())


def print_json_line(value: Any) -> None:
    click.echo(msgspec.json.encode(value, enc_hook=str).decode())


def _text(value: Any, absent: str) -> str:
    if value is None:
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return rfc3339(value.replace(microsecond=0)).replace(".000000", "")
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return ", ".join(f"{name}={_text(part, absent)}" for name, part in pairs.items()) or absent
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value)
