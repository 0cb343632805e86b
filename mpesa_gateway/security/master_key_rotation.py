"""Reseals all secrets while the gateway runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from mpesa_gateway.db.engine import Database
from mpesa_gateway.security.sealing import Sealer


@dataclass(frozen=True)
class SealedColumn:
    """A column of sealed secrets. ``key`` is the primary key, ``aad`` SQL expressions."""

    table: str
    key: str
    column: str
    aad: tuple[str, ...]


KERNEL_SEALED = (
    SealedColumn(table="gateway_secret", key="name", column="sealed", aad=("'gateway'", "'kernel'", "name")),
)

_BATCH = 500


async def reseal(db: Database, sealer: Sealer, columns: Iterable[SealedColumn]) -> dict[str, int]:
    """Return counts by ``table.column``. Raises UnsealError for an unknown key.

    Concurrent changes already use the current key.
    """
    done: dict[str, int] = {}
    for column in columns:
        count, after = 0, ""
        aad = ", ".join(column.aad)
        texts = ", ".join(f"({expression})::text" for expression in column.aad)
        # raw SQL: any table - each that declares a sealed column. Names come from plugins' declarations, never from a
        # caller.
        select = (
            f"SELECT {column.key} AS key, {column.column} AS sealed, {aad}, ARRAY[{texts}] AS texts "  # noqa: S608
            f"FROM {column.table} WHERE {column.key} > $1 AND {column.column} IS NOT NULL "
            f"ORDER BY {column.key} LIMIT {_BATCH}"
        )
        update = f"UPDATE {column.table} SET {column.column} = $3 WHERE {column.key} = $1 AND {column.column} = $2"  # noqa: S608
        while rows := await db.fetch(select, after):
            after = rows[-1]["key"]
            for row in rows:
                if sealer.is_current(row["sealed"]):
                    continue
                # Ids are bound as text here.
                values = zip(tuple(row)[2:-1], row["texts"], strict=True)
                aad_values = tuple(value if isinstance(value, str) else text for value, text in values)
                sealed = sealer.seal(sealer.open(row["sealed"], aad=aad_values), aad=aad_values)
                changed = await db.execute(update, row["key"], row["sealed"], sealed)
                count += changed == "UPDATE 1"
        done[f"{column.table}.{column.column}"] = count
    return done
