"""Table sizes on disk from the catalogue: heap, TOAST and each index, in bytes."""

from dataclasses import dataclass, field
from typing import Any

from bench.sizes.site import SCHEMA

PER_PAYMENT = {
    "attempt": "each try at a delivery",
    "callback": "what Safaricom sent, as it came",
    "delivery": "the event, for one endpoint",
    "event": "an event for merchants, with its body",
    "event_task": "what a plugin has to do about an event",
    "idempotency_key": "which request the payment came from",
    "payment": "the payment",
    "payment_step": "steps of the timeline that the payment's own columns lack",
    "transaction": "the money that moved, one row for each receipt",
    "transaction_witness": "the second and later witness of that money",
}
"""The tables that may grow with each payment, each with the purpose of its rows."""

GROWS = 0.05
"""Rows per payment from which a table counts."""

_LEAST = 10
"""Rows below which a table does not count: some have one for each hour."""

_TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname
"""

# Partitions count for their table; there are no partitions of partitions.
_HEAPS = """
SELECT root.relname AS name, sum(pg_table_size(c.oid) - toast.bytes)::bigint AS heap, sum(toast.bytes)::bigint AS toast,
    min(COALESCE(substring(array_to_string(c.reloptions, ',') FROM 'fillfactor=([0-9]+)'), '100'))::int AS fill_factor,
    sum(pg_stat_get_tuples_updated(c.oid))::bigint AS updated, sum(pg_stat_get_tuples_hot_updated(c.oid))::bigint AS hot
FROM pg_class c
LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
JOIN pg_class root ON root.oid = COALESCE(h.inhparent, c.oid)
CROSS JOIN LATERAL (
    SELECT CASE c.reltoastrelid WHEN 0 THEN 0 ELSE pg_total_relation_size(c.reltoastrelid) END AS bytes
) toast
WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r'
GROUP BY root.relname
"""
_INDEXES = """
SELECT root.relname AS table_name, COALESCE(parent.relname, i.relname) AS name,
    sum(pg_relation_size(i.oid))::bigint AS bytes
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid AND i.relkind = 'i'
LEFT JOIN pg_inherits hi ON hi.inhrelid = i.oid LEFT JOIN pg_class parent ON parent.oid = hi.inhparent
JOIN pg_class t ON t.oid = x.indrelid
LEFT JOIN pg_inherits ht ON ht.inhrelid = t.oid
JOIN pg_class root ON root.oid = COALESCE(ht.inhparent, t.oid)
WHERE t.relnamespace = $1::regnamespace
GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2
"""
_COLUMNS = """
SELECT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = $1::regnamespace AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


@dataclass
class Table:
    """One table: its rows, and bytes. ``columns`` are mean bytes in a row; a NULL has none."""

    rows: int
    heap: int = 0
    toast: int = 0
    indexes: dict[str, int] = field(default_factory=dict[str, int])
    columns: dict[str, float] = field(default_factory=dict[str, float])
    fill_factor: int = 100
    updated: int = 0
    hot: int = 0

    @property
    def bytes(self) -> int:
        """Return the total."""
        return self.heap + self.toast + sum(self.indexes.values())


async def count_rows(connection: Any) -> dict[str, int]:
    """Return the number of rows in each table of the schema."""
    names = [row[0] for row in await connection.fetch(_TABLES, SCHEMA)]
    return {name: await connection.fetchval(f'SELECT count(*) FROM "{name}"') for name in names}  # noqa: S608 - a name from the catalogue


def growing(before: dict[str, int], after: dict[str, int], payments: int) -> list[str]:
    """Return the tables with at least `GROWS` rows for each payment."""
    return [name for name, rows in after.items() if rows - before.get(name, 0) >= max(_LEAST, payments * GROWS)]


async def measure(connection: Any, tables: list[str]) -> dict[str, Table]:
    """Vacuum these tables, and return their sizes."""
    found: dict[str, Table] = {}
    for name in tables:
        await connection.execute(f'VACUUM (ANALYZE) "{name}"')
        rows = await connection.fetchval(f'SELECT count(*) FROM "{name}"')  # noqa: S608 - a name from the catalogue
        found[name] = Table(rows, columns=await _columns(connection, name, rows))
    for row in await connection.fetch(_HEAPS, SCHEMA):
        if table := found.get(row["name"]):
            table.heap, table.toast, table.fill_factor = row["heap"], row["toast"], row["fill_factor"]
            table.updated, table.hot = row["updated"], row["hot"]
    for row in await connection.fetch(_INDEXES, SCHEMA):
        if table := found.get(row["table_name"]):
            table.indexes[row["name"]] = row["bytes"]
    return found


async def count_indexes(connection: Any) -> int:
    """Return the number of indexes in the schema; an index of a partitioned table counts once."""
    return len(await connection.fetch(_INDEXES, SCHEMA))


async def _columns(connection: Any, name: str, rows: int) -> dict[str, float]:
    columns = [row[0] for row in await connection.fetch(_COLUMNS, SCHEMA, name)]
    means = ", ".join(f'avg(COALESCE(pg_column_size("{column}"), 0))::float8 AS "{column}"' for column in columns)
    sample = " TABLESAMPLE SYSTEM (5)" if rows > 100_000 else ""
    row = await connection.fetchrow(f'SELECT {means} FROM "{name}"{sample}')  # noqa: S608 - names from the catalogue
    return {column: round(row[column] or 0.0, 1) for column in columns}
