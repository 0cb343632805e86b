"""Looks at the pooler that may stand in front of Postgres, and whether all that we rely on holds behind it."""

from collections.abc import AsyncIterator

import asyncpg

from mpesa_gateway.check_result import CheckResult, ok, problem, warning
from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import UNREACHABLE, Database, PoolerDetected, SearchPathLost
from mpesa_gateway.server_address import address

_TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout")

_NO_WAY: tuple[type[BaseException], ...] = (
    *UNREACHABLE,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
"""What is raised where Postgres itself is away, or does not let us in."""

_FAREWELL = 5.0
"""Seconds that closing a connection may take."""

# raw SQL: catalog - the server and its settings.
_HERE = "SELECT pg_postmaster_start_time() AS started, current_database() AS name, current_user AS role"
"""What two connections to the same database of the same server agree on."""


def pooler_result(refusal: PoolerDetected | SearchPathLost) -> CheckResult:
    """Why the pool was not opened."""
    text, _, fix = str(refusal).partition(": ")
    return problem("postgres.pooler", text, fix)


async def check_pooler(config: DatabaseConfig, db: Database) -> AsyncIterator[CheckResult]:
    """Nothing, where the settings name no way past a pooler; ``db`` is connected."""
    if not db.is_pooled:
        return
    where = address(config.direct_url)
    try:
        direct = await db.connect()
    except PoolerDetected:
        yield problem(
            "postgres.pooler",
            f"database.direct_url leads to a pooler too ({where}): migrations lose their lock, changes are not heard",
            "let database.direct_url name Postgres itself",
        )
        return
    except _NO_WAY as fault:
        yield problem(
            "postgres.pooler",
            f"Postgres itself cannot be reached at {where} ({type(fault).__name__}): nothing can be migrated, and "
            "every call looks its API key up",
            "start it, open the way to it, or correct database.direct_url",
        )
        return
    try:
        theirs = await direct.fetchrow(_HERE)
    finally:
        await direct.close(timeout=_FAREWELL)
    ours = await db.fetchrow(_HERE)
    if ours is None or theirs is None:
        return
    if (ours["started"], ours["name"]) != (theirs["started"], theirs["name"]):
        yield problem(
            "postgres.pooler",
            f"database.url and database.direct_url lead to different databases ({ours['name']} and {theirs['name']}, "
            f"at {where}): what is migrated is not what is used",
            "let both lead to the same database of the same server",
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
    yield ok("postgres.pooler", f"there is a pooler in between, all that we rely on holds, and {where} leads past it")
