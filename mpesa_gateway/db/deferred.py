"""Writes that nobody waits for before the end of their transaction: all of them go to Postgres in one statement."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import asyncpg

from mpesa_gateway.db.codecs import Connection

Told = Callable[[Sequence[str]], Awaitable[None]]

MOST = 64
"""Writes that one statement takes: Postgres returns 1,664 columns at most, and plans a long one long."""

_NOT_AS_EXPECTED = "MG001"
"""What ``written_as_expected`` raises; nobody else does."""

_PARAMETER = re.compile(r"\$(\d+)")


class ConcurrentUpdate(RuntimeError):
    """A write did not find what it was to change as it was looked at before; nothing of its transaction is done."""


@dataclass(frozen=True)
class DeferredWrite:
    """A statement that returns one column of text, such as the ids of the rows that it writes.

    Writes of one transaction do not see each other's changes, and no two of them may change the same row.
    """

    sql: str
    args: tuple[Any, ...]
    expects: int | None = None
    """How many rows it has to return; with another number all of the transaction fails by ConcurrentUpdate."""
    on_written: Told | None = None
    """Hears, once the write is done, what it returned. It may put nothing off."""
    then: str | None = None
    """A statement that follows with the same arguments. It reads what was returned as the table ``{written}``: the
    first column is called ``it``, further ones keep their names."""


async def execute_writes(connection: Connection, writes: Sequence[DeferredWrite]) -> None:
    """Do all of them, or none. Raises ConcurrentUpdate, and what asyncpg raises for any of them."""
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
        raise RuntimeError("Postgres returned nothing for what was written")
    for number, write in enumerate(writes):
        if write.on_written is not None:
            await write.on_written(row[f"was_{number}"] or [])


@lru_cache(maxsize=512)
def join_statements(parts: tuple[tuple[str, int, bool, str | None], ...]) -> str:
    """One statement for all: each with its number of parameters, whether its rows are counted, and what follows it.

    They are counted in their order, so that the first one which has to wait for somebody waits before the others.
    """
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
        # raw SQL: aggregate - what a write that was put off has returned.
        found.append(f"(SELECT array_agg(it) FROM write_{number}) AS was_{number}")  # noqa: S608 - numbers
    return f"WITH {', '.join(steps)} SELECT {', '.join(found)}"


def _moved_by(given: int) -> Callable[["re.Match[str]"], str]:
    return lambda found: f"${int(found[1]) + given}"
