"""A pooler in front of Postgres: the direct address, and the timeouts behind it."""

from collections.abc import AsyncIterator

import asyncpg

from mpesa_gateway.check_result import CheckResult, ok, problem, warning
from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import UNREACHABLE, Database, PoolerDetected, SearchPathLost
from mpesa_gateway.server_address import address

_TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout")

_CONNECT_ERRORS: tuple[type[BaseException], ...] = (
    *UNREACHABLE,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)

_CLOSE_TIMEOUT = 5.0
"""Seconds."""

# raw SQL: catalog - the server and its settings.
_IDENTITY = "SELECT pg_postmaster_start_time() AS started, current_database() AS name, current_user AS role"


def pooler_result(refusal: PoolerDetected | SearchPathLost) -> CheckResult:
    text, _, fix = str(refusal).partition(": ")
    return problem("postgres.pooler", text, fix)


async def check_pooler(config: DatabaseConfig, db: Database) -> AsyncIterator[CheckResult]:
    """Yield nothing unless a pooler is configured. ``db`` is connected."""
    if not db.is_pooled:
        return
    where = address(config.direct_url)
    try:
        direct = await db.connect()
    except PoolerDetected:
        yield problem(
            "postgres.pooler",
            f"database.direct_url leads to a pooler too ({where}): migrations lose their lock, notifications are lost",
            "set database.direct_url to Postgres itself",
        )
        return
    except _CONNECT_ERRORS as fault:
        yield problem(
            "postgres.pooler",
            f"Postgres itself cannot be reached at {where} ({type(fault).__name__}): migrations cannot run, and "
            "every call reads its API key from the database",
            "start it, allow connections to it, or correct database.direct_url",
        )
        return
    try:
        theirs = await direct.fetchrow(_IDENTITY)
    finally:
        await direct.close(timeout=_CLOSE_TIMEOUT)
    ours = await db.fetchrow(_IDENTITY)
    if ours is None or theirs is None:
        return
    if (ours["started"], ours["name"]) != (theirs["started"], theirs["name"]):
        yield problem(
            "postgres.pooler",
            f"database.url and database.direct_url lead to different databases ({ours['name']} and {theirs['name']}, "
            f"at {where}): migrations do not reach the database in use",
            "set both to the same database of the same server",
        )
        return
    without = [name for name in _TIMEOUTS if await db.fetchval("SELECT current_setting($1)", name) == "0"]
    if without:
        missing = " and ".join(without)
        yield warning(
            "postgres.pooler",
            f"behind the pooler there is no {missing}: a statement or a transaction that hangs keeps its locks",
            f'run `ALTER ROLE "{ours["role"]}" IN DATABASE "{ours["name"]}" SET … = '
            f"{int(config.statement_timeout * 1000)}` for each in Postgres, and `RECONNECT` in PgBouncer",
        )
        return
    yield ok("postgres.pooler", f"a pooler is in use, sessions behind it have timeouts, and {where} leads past it")
