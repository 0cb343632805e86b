"""Lists on the terminal: a table for people, tab-separated lines for programs."""

from collections.abc import Iterable, Sequence

import rich_click as click
from rich.console import Console
from rich.table import Table


def show(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings; to a pipe or a file as one tab-separated line each, headings first."""
    console = Console()
    if not console.is_terminal:
        for row in (headings, *rows):
            click.echo("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
