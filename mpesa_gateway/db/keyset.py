"""Keyset pagination by id; ids begin with their time."""

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any, Generic, TypeVar

import msgspec

from mpesa_gateway.cursors import decode_cursor, encode_cursor, invalid_cursor
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.named import Bound
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids

R = TypeVar("R")
T = TypeVar("T")

COUNT_LIMIT = 100

EXPORT_BATCH = 1000
"""Rows per query."""

_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


class Conditions:
    """A WHERE clause. ``since`` is inclusive, ``until`` exclusive.

    A row also matches one of ``ways``, if there are any. Each way is read alone, by its own index, with all ``parts``.
    """

    def __init__(
        self,
        env: Env | None = None,
        merchant_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        self.env: Env | None = env
        self.merchant_id = merchant_id
        self.since = since
        self.until = until
        self.parts: list[str] = []
        self.ways: list[str] = []
        self.values: list[Any] = []

    def bind(self, sql: str, *values: Any) -> str:
        names = [f"${len(self.values) + index}" for index in range(1, len(values) + 1)]
        self.values.extend(values)
        return sql.format(*names)

    def add(self, sql: str, *values: Any) -> None:
        self.parts.append(self.bind(sql, *values))

    def add_way(self, sql: str, *values: Any) -> None:
        self.ways.append(f"({self.bind(sql, *values)})")

    def equal(self, **values: Any) -> None:
        """Skip empty values, and remove NUL: Postgres text cannot hold it."""
        for column, value in values.items():
            if value is not None:
                self.add(f"{column} = {{}}", value.replace("\x00", "") if isinstance(value, str) else value)

    def copy(self) -> "Conditions":
        copied = Conditions(self.env, self.merchant_id, self.since, self.until)
        copied.parts, copied.ways, copied.values = [*self.parts], [*self.ways], [*self.values]
        return copied


@dataclass(frozen=True)
class KeysetPage(Generic[R]):
    """``next_cursor`` is None at the end."""

    rows: Sequence[R]
    limit: int
    next_cursor: str | None
    first: str | None
    total: int | None = None

    def map(self, view: Callable[[R], T]) -> "KeysetPage[T]":
        return KeysetPage([view(row) for row in self.rows], self.limit, self.next_cursor, self.first, self.total)


@dataclass(frozen=True)
class Total:
    """Number of rows and the sum of their amounts."""

    count: int
    amount: int


class OperatorQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Query parameters of operators' lists."""

    merchant: str | None = None
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class KeysetList:
    """A table, newest first by ``key``: an id with ``prefix``, or a number.

    With ``time``, a column of ``columns``, rows are in its order, then by ``key``. ``source`` and ``columns`` replace
    the table. ``of_env`` conditions each have an index; with ``of_merchants`` it begins with the merchant.
    """

    table: str
    key: str
    time: str = ""
    prefix: str = ""
    source: str = ""
    columns: str = "*"
    of_env: tuple[str, ...] = ("env = {}",)
    of_merchants: bool = True
    by_index: bool = False
    oldest_first: bool = False
    amount: str = "amount"

    async def page(
        self, db: Database, found: Conditions, cursor: str | None, limit: int, *, count: bool = False
    ) -> KeysetPage[Row]:
        """Raise InvalidFields for a cursor of another list or env."""
        rows = await db.fetch_planned(*self.select(found, limit + 1, self._after(cursor, found.env)))
        shown = rows[:limit]
        return KeysetPage(
            shown,
            limit,
            self._cursor(shown[-1], found.env) if len(rows) > limit else None,
            self._cursor(shown[0], found.env) if shown else None,
            await self.count(db, found) if count else None,
        )

    async def count(self, db: Database, found: Conditions) -> int:
        chosen = self._bounded(found)
        chosen.equal(merchant_id=found.merchant_id)
        if found.env is not None and self.of_env:
            chosen.parts.append(f"({' OR '.join(self._env_parts(chosen, found.env))})")
        # raw SQL: any table - names of tables are ours; every value is a parameter.
        # raw SQL: join - a page of all merchants.
        sql = f"SELECT count(*) FROM {self._matching(self.key, chosen)}"  # noqa: S608
        return int(await db.fetchval(sql, *chosen.values))

    async def total(self, db: Database, found: Conditions) -> Total:
        sql, *values = self.select_total(found)
        row = await db.fetchrow(sql, *values)
        return Total(0, 0) if row is None else Total(row["count"], row["amount"])

    def select_total(self, found: Conditions) -> Bound:
        """Use one index scan per merchant."""
        chosen = self._bounded(found)
        chosen.equal(merchant_id=found.merchant_id)
        by_merchant = self.of_merchants and found.merchant_id is None
        if by_merchant:
            chosen.parts.append(f"{self.table}.merchant_id = merchant.merchant_id")
        if found.env is not None and self.of_env:
            chosen.parts.append(f"({' OR '.join(self._env_parts(chosen, found.env))})")
        sql = (
            f"SELECT count(*) AS count, coalesce(sum({self.amount}), 0)::bigint AS amount "  # noqa: S608 - as in count
            f"FROM {self._matching(f'{self.key}, {self.amount}', chosen)}"
        )
        if by_merchant:
            sql = (
                "SELECT coalesce(sum(count), 0)::bigint AS count, coalesce(sum(amount), 0)::bigint AS amount "  # noqa: S608 - as in count
                f"FROM merchant CROSS JOIN LATERAL ({sql}) AS each"
            )
        return sql, *chosen.values

    async def count_newer(self, db: Database, found: Conditions, cursor: str | None) -> int:
        chosen, last = found.copy(), self._after(cursor, found.env)
        if last is not None:
            chosen.add(f"{self.key} > {{}}", last)
        sql, values = self._rows(self.key, self._bounded(chosen), COUNT_LIMIT)
        return int(await db.fetchval(f"SELECT count(*) FROM ({sql}) AS newer", *values))  # noqa: S608 - as in count

    async def export(self, db: Database, found: Conditions, view: Callable[[Row], T]) -> AsyncGenerator[list[T]]:
        after: Any = None
        while rows := await db.fetch_planned(*self.select(found, EXPORT_BATCH, after)):
            yield [view(row) for row in rows]
            if len(rows) < EXPORT_BATCH:
                return
            after = self._position(rows[-1])

    def select(self, found: Conditions, limit: int, after: Any = None) -> Bound:
        chosen = self._bounded(found, after)
        if not self.by_index:
            sql, values = self._rows(self.columns, chosen, limit)
            return sql, *values
        sql, values = self._rows(self.key, chosen, limit)
        return (
            f"SELECT {self.table}.* FROM ({sql}) AS shown JOIN {self.table} USING ({self.key}) {self._order}",  # noqa: S608
            *values,
        )

    def _bounded(self, found: Conditions, after: Any = None) -> Conditions:
        chosen = found.copy()
        if found.since is not None:
            chosen.add(f"{self.key} >= {{}}", Ids.least(self.prefix, found.since))
        if self.time and after is not None:
            chosen.add(f"({self.time}, {self.key}) {'>' if self.oldest_first else '<'} ({{}}, {{}})", *after)
            after = None
        # With two bounds, Postgres starts at the later one and skips rows.
        until = None if found.until is None else Ids.least(self.prefix, found.until)
        if (bound := min((each for each in (after, until) if each is not None), default=None)) is not None:
            chosen.add(f"{self.key} {'>' if self.oldest_first else '<'} {{}}", bound)
        return chosen

    def _rows(self, columns: str, chosen: Conditions, limit: int) -> tuple[str, list[Any]]:
        order = f"{self._order} LIMIT {limit}"
        chosen.equal(merchant_id=chosen.merchant_id)
        by_merchant = self.of_merchants and chosen.merchant_id is None
        if by_merchant:
            chosen.parts.append(f"{self.table}.merchant_id = merchant.merchant_id")
        envs = [] if chosen.env is None else self._env_parts(chosen, chosen.env)
        queries = [
            f"SELECT {columns} FROM {self.source or self.table} WHERE {_where([*chosen.parts, *part])} {order}"  # noqa: S608
            for part in product(*(each for each in (envs, chosen.ways) if each))
        ]
        sql = queries[0]
        if len(queries) > 1:
            # A row that matches in several ways is listed once.
            union = "UNION" if chosen.ways else "UNION ALL"
            sql = f"SELECT page.* FROM (({f') {union} ('.join(queries)})) AS page {order}"  # noqa: S608
        if by_merchant:
            # No index covers all merchants.
            sql = f"SELECT page.* FROM merchant CROSS JOIN LATERAL ({sql}) AS page {order}"  # noqa: S608
        return sql, chosen.values

    def _matching(self, columns: str, chosen: Conditions) -> str:
        source = self.source or self.table
        if not chosen.ways:
            return f"{source} WHERE {_where(chosen.parts)}"
        queries = [
            f"SELECT {columns} FROM {source} WHERE {_where([*chosen.parts, way])}"  # noqa: S608 - as in count
            for way in chosen.ways
        ]
        return f"({' UNION '.join(queries)}) AS matching"

    def _env_parts(self, chosen: Conditions, env: Env) -> list[str]:
        return [chosen.bind(sql, *[env] * sql.count("{}")) for sql in self.of_env]

    @property
    def _order(self) -> str:
        way = "ASC" if self.oldest_first else "DESC"
        return f"ORDER BY {f'{self.time} {way}, ' if self.time else ''}{self.key} {way}"

    def _position(self, row: Row) -> Any:
        return (row[self.time], row[self.key]) if self.time else row[self.key]

    def _cursor(self, row: Row, env: Env | None) -> str:
        key = str(row[self.key])
        return encode_cursor(f"{row[self.time].isoformat()} {key}" if self.time else key, env)

    def _after(self, cursor: str | None, env: Env | None) -> Any:
        if cursor is None:
            return None
        key = decode_cursor(cursor, env)
        if self.time:
            time, _, key = key.partition(" ")
            try:
                at = datetime.fromisoformat(time).astimezone(UTC)
            except (ValueError, OverflowError):
                raise invalid_cursor() from None
            if not Ids.has_form(key, self.prefix):
                raise invalid_cursor()
            return at, key
        if not self.prefix:
            if _NUMBER.fullmatch(key) is None:
                raise invalid_cursor()
            return int(key)
        if not Ids.has_form(key, self.prefix):
            raise invalid_cursor()
        return key


def _where(parts: Sequence[str]) -> str:
    return " AND ".join(parts) or "true"
