"""``python -m bench.sizes``: what a completed STK payment costs in Postgres, in bytes by table, index and TOAST.

Payments are made by the product itself, and the rows that they leave are copied until so many are stored. Exits with 1
when a table grows with payments and `measure.PER_PAYMENT` does not say what for.
"""

import asyncio
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import rich_click as click
from rich.console import Console
from rich.table import Table as Shown

from bench.chaos.git import commit
from bench.sizes.copies import Templates, multiply, read_rows, words_of
from bench.sizes.measure import PER_PAYMENT, Table, count_indexes, count_rows, growing, measure
from bench.sizes.site import SCHEMA, SizesSite, shop_of

COARSE = 5_000
"""Payments below which their own tables are too small to measure: an index has at least a page of 8 kB."""

_QUICK = (40, 200)


@click.command()
@click.option("--payments", type=click.IntRange(1), default=1_000_000, show_default=True, help="Stored when measured.")
@click.option(
    "--through",
    type=click.IntRange(20),
    default=400,
    show_default=True,
    help=f"Made by the product, and then copied; from {COARSE:,} on their own bytes are shown as well.",
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
@click.option("--plain", is_flag=True, help="A short Idempotency-Key, the merchant's own reference, no metadata.")
@click.option("--quick", is_flag=True, help="200 payments, to see that it works: not for its figures.")
def sizes(payments: int, through: int, report: Path | None, *, plain: bool, quick: bool) -> None:
    """Measure what a completed STK payment costs in Postgres."""
    console = Console()
    if quick:
        through, payments = _QUICK
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-sizes-"))
    try:
        found = asyncio.run(Run(folder, console, is_plain=plain).play(through, max(1, round(payments / through))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if unexplained := found["tables"].keys() - PER_PAYMENT.keys():
        raise click.ClickException(f"no reason in bench/sizes/measure.py for rows of {', '.join(sorted(unexplained))}")


class Run:
    """One run in a folder."""

    def __init__(self, folder: Path, console: Console, *, is_plain: bool) -> None:
        self._is_plain = is_plain
        self._site = SizesSite(folder)
        self._console = console

    async def play(self, through: int, copies: int) -> dict[str, Any]:
        """Make ``through`` payments, measure them, store ``copies`` times as many, and measure those."""
        site = self._site
        await asyncio.to_thread(site.start)
        try:
            await site.create_databases()
            processes = await asyncio.to_thread(site.begin)
            connection: Any = None
            try:
                async with shop_of(site, is_plain=self._is_plain) as shop:
                    connection = await asyncpg.connect(
                        site.database("gateway"), server_settings={"search_path": SCHEMA, "timezone": "UTC"}
                    )
                    before = await count_rows(connection)
                    known = words_of({name: await read_rows(connection, name) for name in before})
                    self._say(f"making {through:,} payments")
                    await shop.sell(through)
            finally:
                for process in reversed(processes):
                    await asyncio.to_thread(process.stop)
            after = await count_rows(connection)
            tables = growing(before, after, through)
            real = await measure(connection, tables)
            templates = Templates(
                {name: await read_rows(connection, name) for name in tables}, known, datetime.now(UTC)
            )
            self._say(f"storing {through * copies:,}")
            await multiply(connection, templates, tables, copies)
            self._say("measuring")
            stored = await measure(connection, tables)
            indexes = await count_indexes(connection)
            await connection.close()
        finally:
            with suppress(Exception):
                await asyncio.to_thread(site.stop)
        others = {name: after[name] - before.get(name, 0) for name in after if name not in tables}
        found = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "is_plain": self._is_plain,
            "payments": through * copies,
            "through": through,
            "bytes_per_payment": round(_sum(stored) / (through * copies), 1),
            "bytes_per_payment_through": round(_sum(real) / through, 1) if through >= COARSE else None,
            "indexes_of_all_tables": indexes,
            "tables": {name: _each(table, through * copies) for name, table in stored.items()},
            "tables_through": {name: _each(table, through) for name, table in real.items()},
            "rows_of_other_tables": {name: rows for name, rows in others.items() if rows},
        }
        self._print(found)
        return found

    def _print(self, found: dict[str, Any]) -> None:
        is_fine = found["through"] >= COARSE
        shown = Shown(title=f"bytes per payment, {found['payments']:,} stored, at {found['commit']}")
        names = ["table", "rows", "heap", "TOAST", "indexes", "of them", "sum"]
        names += [f"sum, {found['through']:,} made", "updates", "HOT"] if is_fine else ["updates", "HOT"]
        for name in names:
            shown.add_column(name, justify="left" if name == "table" else "right")
        for name, table in found["tables"].items():
            real = found["tables_through"][name]
            values = [table["rows"], table["heap"], table["toast"], table["index_bytes"], len(table["indexes"])]
            values += [table["sum"], real["sum"]] if is_fine else [table["sum"]]
            shown.add_row(name, *(f"{value:,.10g}" for value in [*values, real["updates"], real["hot"]]))
        self._console.print(shown)
        listed = Shown("index", "bytes")
        for name, table in found["tables"].items():
            for index, size in table["indexes"].items():
                listed.add_row(f"{name}: {index}", f"{size:,.1f}")
        self._console.print(listed)
        self._console.print(
            f"{found['bytes_per_payment']:,.0f} bytes per payment"
            + (f" ({found['bytes_per_payment_through']:,.0f} as made by the product)" if is_fine else "")
            + f"; {found['indexes_of_all_tables']} indexes in all tables of the schema; "
            f"rows of tables that do not grow with payments: {found['rows_of_other_tables']}",
            highlight=False,
        )

    def _say(self, text: str) -> None:
        self._console.print(f"{datetime.now(UTC):%H:%M:%S} {text}", highlight=False)


def _sum(tables: dict[str, Table]) -> int:
    return sum(table.bytes for table in tables.values())


def _each(table: Table, payments: int) -> dict[str, Any]:
    """A table's figures per payment; ``columns`` are bytes in a row."""
    found = asdict(table)
    index_bytes = sum(table.indexes.values())
    return {
        "rows": round(table.rows / payments, 3),
        "heap": round(table.heap / payments, 1),
        "toast": round(table.toast / payments, 1),
        "index_bytes": round(index_bytes / payments, 1),
        "sum": round(table.bytes / payments, 1),
        "indexes": {name: round(size / payments, 1) for name, size in table.indexes.items()},
        "columns": found["columns"],
        "fill_factor": table.fill_factor,
        "updates": round(table.updated / payments, 2),
        "hot": round(table.hot / payments, 2),
    }


if __name__ == "__main__":
    sizes()
