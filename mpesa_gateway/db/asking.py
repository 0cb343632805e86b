"""Questions to a Postgres: the few ways to ask one, whichever server and connection answers."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.db.columns import Columns

Row: TypeAlias = asyncpg.Record
Connection: TypeAlias = "PoolConnectionProxy[Row] | asyncpg.Connection[Row]"
Question: TypeAlias = Callable[[Connection], Awaitable[Any]]


class Asking(ABC):
    """Something that answers queries."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    @abstractmethod
    async def ask(self, question: Question) -> Any:
        """What the question gives, asked on a connection that is there for it."""

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        """All rows of a query. ``*`` means the columns of a bound table that this release knows."""
        spelt = self.columns.spell_out(sql)
        rows: list[Row] = await self.ask(lambda connection: connection.fetch(spelt, *args))
        return rows

    async def fetch_planned(self, sql: str, *args: Any) -> list[Row]:
        """Like ``fetch``, with a plan for exactly these values, at the price of a second trip.

        After five executions Postgres may keep one plan for all values. For a list that is the wrong one: whether to
        walk along the newest rows or to look up the few that match depends on how rare the value is.
        """
        spelt = self.columns.spell_out(sql)

        async def question(connection: Connection) -> list[Row]:
            # What has no name is planned anew each time.
            statement = await connection.prepare(spelt, name="")
            return await statement.fetch(*args)

        rows: list[Row] = await self.ask(question)
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row of a query, or None."""
        spelt = self.columns.spell_out(sql)
        row: Row | None = await self.ask(lambda connection: connection.fetchrow(spelt, *args))
        return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first value of the first row, or None."""
        return await self.ask(lambda connection: connection.fetchval(sql, *args))
