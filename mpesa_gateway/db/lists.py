"""Long lists of one env, newest first, of one merchant or of all, served by the index of each merchant's own list."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from mpesa_gateway.cursors import decode_position, encode_position
from mpesa_gateway.db.asking import Asking
from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env

Position = tuple[datetime, str]
"""Where a row stands in its list: its time and its id."""

COUNTED = 100
"""New rows that are counted; beyond that it is enough to know that there are many."""


class Conditions:
    """Collects the parts of a WHERE clause with their parameters."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.values: list[Any] = []

    def add(self, sql: str, *values: Any) -> None:
        """A condition; ``{}`` stands for each of its parameters in turn."""
        names = [f"${len(self.values) + index}" for index in range(1, len(values) + 1)]
        self.parts.append(sql.format(*names))
        self.values.extend(values)

    def copy(self) -> "Conditions":
        """The same, to add more to."""
        copied = Conditions()
        copied.parts, copied.values = [*self.parts], [*self.values]
        return copied

    @property
    def where(self) -> str:
        """The clause."""
        return " AND ".join(self.parts) or "true"


@dataclass(frozen=True)
class Paged:
    """Some rows of a list, and where the next ones begin; None at its end. ``first`` is where these begin."""

    rows: Sequence[Row]
    next_cursor: str | None
    first: str | None


class DeskQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every page with a list takes: of whom, and where in it to look."""

    merchant: str | None = None
    cursor: str | None = None


@dataclass(frozen=True)
class Listing:
    """A table with an index on merchant, env, time and id (the last two descending)."""

    table: str
    at: str
    key: str

    async def page(
        self, reads: Asking, merchant_id: str | None, env: Env, found: Conditions, cursor: str | None, limit: int
    ) -> Paged:
        """A page of one merchant's rows of ``env``, or of all merchants'. Raises Invalid for a bad cursor."""
        chosen = found.copy()
        chosen.add(f"{self.table}.env = {{}}", env)
        if cursor is not None:
            chosen.add(f"({self.at}, {self.key}) < ({{}}, {{}})", *decode_position(cursor, env))
        rows = await reads.fetch(self._sql("*", merchant_id, chosen, limit + 1), *chosen.values)
        shown = rows[:limit]
        return Paged(
            shown,
            encode_position(*self.position(shown[-1]), env) if len(rows) > limit else None,
            encode_position(*self.position(shown[0]), env) if shown else None,
        )

    async def count_newer(
        self, reads: Asking, merchant_id: str | None, env: Env, found: Conditions, cursor: str | None
    ) -> int:
        """How many rows of ``env`` are newer than the one at the cursor (all of them without one), up to COUNTED."""
        chosen = found.copy()
        chosen.add(f"{self.table}.env = {{}}", env)
        if cursor is not None:
            chosen.add(f"({self.at}, {self.key}) > ({{}}, {{}})", *decode_position(cursor, env))
        rows = self._sql(f"{self.at}, {self.key}", merchant_id, chosen, COUNTED)
        # raw SQL: replica - Piccolo asks the primary.
        return int(await reads.fetchval(f"SELECT count(*) FROM ({rows}) AS newer", *chosen.values))  # noqa: S608 - as below

    def position(self, row: Row) -> Position:
        """Where a row stands in the list."""
        return row[self.at], row[self.key]

    def _sql(self, columns: str, merchant_id: str | None, chosen: Conditions, limit: int) -> str:
        """The query. Names of tables and columns are ours; every value is a parameter of ``chosen``."""
        order = f"ORDER BY {self.at} DESC, {self.key} DESC LIMIT {limit}"
        if merchant_id is not None:
            chosen.add("merchant_id = {}", merchant_id)
            return f"SELECT {columns} FROM {self.table} WHERE {chosen.where} {order}"  # noqa: S608
        # Each merchant's newest by its own index, and the newest of those: no index over all merchants to keep up.
        return (
            f"SELECT page.* FROM merchant CROSS JOIN LATERAL (SELECT {columns} FROM {self.table} "  # noqa: S608
            f"WHERE {self.table}.merchant_id = merchant.merchant_id AND {chosen.where} {order}) AS page {order}"
        )
