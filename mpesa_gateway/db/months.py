"""Tables by month: partitions that are made ahead of time, and dropped whole once all of one has been kept long enough.

Why, and which tables are kept so, is in docs/adr/0033.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import asyncpg
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.config import HasSettings
from mpesa_gateway.db.engine import OVERBURDENED, Database
from mpesa_gateway.ids import Ids

log = structlog.get_logger(__name__)

AHEAD = 3
"""Months that have their partition before they begin."""

TRIES = 5
"""How often a table that is in use is asked for before it is left until another time."""

FEW = 10_000
"""Rows that are taken along from where rows without a month are, while everybody else waits for the table."""

LOCKS = "SET LOCAL lock_timeout = '500ms'"
"""While a change waits for its table, or for one that it refers to, everybody else queues up behind it.

It is less than Postgres waits until it looks for a ring of waiters and ends one of them: that shall be us.
"""

_PAUSE = 1.0
"""Seconds between two tries: time for those who have queued up meanwhile."""

# raw SQL: catalog - the partitions of a table.
_PARTS = """
SELECT relname AS name, pg_get_expr(relpartbound, pg_class.oid) AS bound
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = to_regclass($1) ORDER BY relname
"""
"""The bound is NULL where another process has dropped the partition since this statement began."""

_IS_BY_MONTH = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)"

_BOUND = re.compile(r"FOR VALUES FROM \((?:MINVALUE|'([^']*)')\) TO \((?:MAXVALUE|'([^']*)')\)\Z")


@dataclass(frozen=True)
class Monthly:
    """A table that is partitioned by range of its identifiers, which begin with their time: one partition a month.

    Rows are inserted and never move: ``key`` is the identifier's column, the whole primary key, and ``prefix`` what
    identifiers begin with. The migration makes the table, and beside it a partition for the rest (``DEFAULT``); months
    are made ahead of time. ``what`` names the rows; ``days`` says from the settings for how long after the end of their
    month they are kept, 0 for ever: then they are dropped with their month.
    """

    what: str
    table: str
    key: str
    prefix: str
    days: Callable[[HasSettings], int]


@dataclass(frozen=True)
class Part:
    """A partition: the identifiers from ``begins`` to just before ``ends``, or whatever no other one takes."""

    name: str
    begins: str | None
    ends: str | None
    is_rest: bool = False

    @property
    def is_month(self) -> bool:
        """Whether it is one month and nothing else."""
        return self.begins is not None

    def takes(self, identifier: str) -> bool:
        """Whether such an identifier belongs here."""
        is_late_enough = self.begins is None or self.begins <= identifier
        return not self.is_rest and is_late_enough and (self.ends is None or identifier < self.ends)


@dataclass(frozen=True)
class Standing:
    """How a table is: the months, of this one and the next, that have no partition; whether rows have no month."""

    table: str
    missing: Sequence[str]
    has_astray: bool


class Months:
    """Looks after the partitions of all tables by month. Several processes may do so at once: the first one does it."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        tables: Sequence[Monthly],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._db = db
        self._clock = clock
        self._tables = tables
        self._sleep = sleep

    async def prepare(self, tries: int = TRIES) -> list[str]:
        """Make the partitions of this month and the next ones where they are missing; gives their names.

        Whatever stands in the way is logged, and raises nothing: until another time, such rows have a place anyway.
        A table that is in use is asked for so many ``tries``.
        """
        made: list[str] = []
        for monthly in self._tables:
            if not await self._db.fetchval(_IS_BY_MONTH, monthly.table):
                continue
            for begins in months_from(self._clock.now(), AHEAD + 1):
                name = await self._patiently(monthly.table, partial(self._make, monthly, begins), tries)
                if name:
                    log.info("month_made", table=monthly.table, partition=name)
                    made.append(name)
        return made

    async def parts(self, table: str) -> list[Part]:
        """The partitions of a table; none where it has not been made a table by month, or not yet."""
        rows = await self._db.fetch(_PARTS, table)
        return [_part(row["name"], row["bound"]) for row in rows if row["bound"] is not None]

    async def drop(self, monthly: Monthly, before: datetime) -> int:
        """Drop the partitions with nothing in them that was made at ``before`` or later; gives how many."""
        oldest, count = Ids.least(monthly.prefix, before), 0
        for part in await self.parts(monthly.table):
            if part.ends is None or part.ends > oldest:
                continue
            if await self._patiently(monthly.table, partial(self._drop, monthly.table, part.name)):
                log.info("month_dropped", table=monthly.table, partition=part.name)
                count += 1
        return count

    async def forget(self, monthly: Monthly, before: datetime, limit: int) -> int:
        """Delete at most so many old rows where they do not go by the month: made before there were months, or astray.

        Passes over those that somebody has locked. Gives how many have gone.
        """
        oldest = Ids.least(monthly.prefix, before)
        for name in await self._not_of_a_month(monthly.table):
            try:
                tag = await self._db.execute(forget_sql(name, monthly.key), oldest, limit)
            except asyncpg.UndefinedTableError:
                continue  # Another worker has just dropped all of it.
            if gone := int(tag.rpartition(" ")[2]):
                return gone
        return 0

    async def look(self) -> list[Standing]:
        """How each table is that has partitions already."""
        found: list[Standing] = []
        for monthly in self._tables:
            parts = await self.parts(monthly.table)
            if not parts:
                continue
            missing = [
                f"{begins:%Y-%m}"
                for begins in months_from(self._clock.now(), 2)
                if not any(part.takes(Ids.least(monthly.prefix, begins)) for part in parts)
            ]
            # raw SQL: any table - the table of a declaration, or its partition.
            astray = [
                await self._db.fetchval(f"SELECT EXISTS (SELECT 1 FROM {part.name})")  # noqa: S608 - the catalogue's name
                for part in parts
                if part.is_rest
            ]
            found.append(Standing(monthly.table, missing, any(astray)))
        return found

    async def _not_of_a_month(self, table: str) -> list[str]:
        parts = await self.parts(table)
        return [part.name for part in parts if not part.is_month] if parts else [table]

    async def _patiently(
        self, table: str, change: Callable[[], Awaitable[str | None]], tries: int = TRIES
    ) -> str | None:
        """Try a change that needs the table for a moment, and give up after some times: there will be another day."""
        problem: BaseException | None = None
        for turn in range(tries):
            if turn:
                await self._sleep(_PAUSE)
            try:
                return await change()
            except OVERBURDENED as busy:
                problem = busy
            except asyncpg.PostgresError as refused:
                # Such as a role that may not make tables, or a table of that name that somebody has detached.
                problem = refused
                break
        log.warning("month_put_off", table=table, error=type(problem).__name__)
        return None

    async def _make(self, monthly: Monthly, begins: datetime) -> str | None:
        """Make one month's partition; None where it is not needed, or too many of its rows are where none should be."""
        first = Ids.least(monthly.prefix, begins)
        if any(part.takes(first) for part in await self.parts(monthly.table)):
            return None
        # raw SQL: function - our own, in a migration.
        async with self._db.transaction():
            await self._db.execute(LOCKS)
            name: str | None = await self._db.fetchval(
                "SELECT make_month($1, $2, $3, $4)", monthly.table, monthly.prefix, begins, FEW
            )
        return name

    async def _drop(self, table: str, name: str) -> str | None:
        async with self._db.transaction():
            await self._db.execute(LOCKS)
            is_gone = await self._db.fetchval("SELECT drop_month($1, $2)", table, name)
        return name if is_gone else None


def months_from(moment: datetime, count: int) -> list[datetime]:
    """The beginnings, in UTC, of so many months, that of ``moment`` first."""
    moment = moment.astimezone(UTC)
    numbers = [moment.year * 12 + moment.month - 1 + more for more in range(count)]
    return [datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC) for number in numbers]


def forget_sql(table: str, key: str) -> str:
    """Deletes at most $2 rows whose identifier is less than $1, the oldest first. Names are ours or the catalogue's."""
    # raw SQL: lock - what several workers forget at once.
    return (
        f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {key} < $1 "  # noqa: S608
        f"ORDER BY {key} LIMIT $2 FOR UPDATE SKIP LOCKED)"
    )


def _part(name: str, bound: str) -> Part:
    found = _BOUND.match(bound)
    return Part(name, found[1], found[2]) if found else Part(name, None, None, is_rest=True)
