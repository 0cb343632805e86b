"""Deferred writes are sent as one statement at the end of their transaction."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import asyncpg

from mpesa_gateway.db.codecs import Connection

OnWritten = Callable[[Sequence[str]], Awaitable[None]]

MOST = 64
"""Postgres returns at most 1,664 columns, and long statements are planned slowly."""

_NOT_AS_EXPECTED = "MG001"

_PARAMETER = re.compile(r"\$(\d+)")


class ConcurrentUpdate(RuntimeError):
    """A write found other rows than expected."""


@dataclass(frozen=True)
class DeferredWrite:
    """A statement that returns one column of text.

    Writes of one transaction do not see each other and must not change the same row.
    """

    sql: str
    args: tuple[Any, ...]
    expects: int | None = None
    """Expected number of rows, else ConcurrentUpdate."""
    on_written: OnWritten | None = None
    """Called with the returned values; must not defer writes."""
    then: str | None = None
    """Following statement. Table ``{written}`` has the returned rows, its first column named ``it``."""


async def execute_writes(connection: Connection, writes: Sequence[DeferredWrite]) -> None:
    """Raise ConcurrentUpdate and errors of asyncpg."""
    args: list[Any] = []
    for write in writes:
        args.extend(write.args)
        if write.expects is not None:
            args.append(write.expects)
    sql = join_statements(
        tuple((write.sql, len(write.args), write.expects is not None, write.then) for write in writes)
    )
    try:
        row = await connection.fetchrow(sql, *args)
    except asyncpg.PostgresError as problem:
        if problem.sqlstate == _NOT_AS_EXPECTED:
            raise ConcurrentUpdate(str(problem)) from None
        raise
    if row is None:
        raise RuntimeError("Postgres returned no row for the writes")
    for number, write in enumerate(writes):
        if write.on_written is not None:
            await write.on_written(row[f"was_{number}"] or [])


@lru_cache(maxsize=512)
def join_statements(parts: tuple[tuple[str, int, bool, str | None], ...]) -> str:
    """``parts``: text, number of parameters, is counted, following statement."""
    steps: list[str] = []
    found: list[str] = []
    given = 0
    for number, (sql, parameters, is_counted, then) in enumerate(parts):
        steps.append(f"write_{number} (it) AS ({_PARAMETER.sub(_moved_by(given), sql)})")
        if then is not None:
            follows = then.replace("{written}", f"write_{number}")
            steps.append(f"then_{number} AS ({_PARAMETER.sub(_moved_by(given), follows)})")
        given += parameters
        if is_counted:
            given += 1
            found.append(f"written_as_expected((SELECT count(*) FROM write_{number}), ${given}) AS count_{number}")  # noqa: S608 - numbers
        # raw SQL: aggregate - the rows returned by a deferred write.
        found.append(f"(SELECT array_agg(it) FROM write_{number}) AS was_{number}")  # noqa: S608 - numbers
    return f"WITH {', '.join(steps)} SELECT {', '.join(found)}"


def _moved_by(given: int) -> Callable[["re.Match[str]"], str]:
    return lambda found: f"${int(found[1]) + given}"
