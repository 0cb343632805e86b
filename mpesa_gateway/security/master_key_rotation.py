"""A new master key: everything that an old key sealed is opened and sealed again, while the gateway runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from mpesa_gateway.db.engine import Database
from mpesa_gateway.security.sealing import Sealer


@dataclass(frozen=True)
class SealedColumn:
    """A column of sealed secrets, so that a new master key can seal them again.

    ``key`` is the table's primary key; ``aad`` holds SQL expressions over the row that give what it is sealed for.
    """

    table: str
    key: str
    column: str
    aad: tuple[str, ...]


KERNEL_SEALED = (
    SealedColumn(table="gateway_secret", key="name", column="sealed", aad=("'gateway'", "'kernel'", "name")),
)
"""What the kernel itself holds sealed."""

_BATCH = 500


async def reseal(db: Database, sealer: Sealer, columns: Iterable[SealedColumn]) -> dict[str, int]:
    """Seal again whatever the present key did not seal; gives the count for each ``table.column``.

    A value that changes meanwhile is left alone: whoever changed it sealed it with the present key. Raises
    UnsealError, changing nothing of that row, when a value's key is not in the ring.
    """
    done: dict[str, int] = {}
    for column in columns:
        count, after = 0, ""
        aad = ", ".join(column.aad)
        texts = ", ".join(f"({expression})::text" for expression in column.aad)
        # raw SQL: any table - each that declares a sealed column.
        # Table and column names come from the plugins' own declarations, never from a caller.
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
                # An identifier is bound as its text here, not as its uuid there.
                values = zip(tuple(row)[2:-1], row["texts"], strict=True)
                aad_values = tuple(value if isinstance(value, str) else text for value, text in values)
                sealed = sealer.seal(sealer.open(row["sealed"], aad=aad_values), aad=aad_values)
                changed = await db.execute(update, row["key"], row["sealed"], sealed)
                count += changed == "UPDATE 1"
        done[f"{column.table}.{column.column}"] = count
    return done
