"""Each thing that a pooler in transaction mode takes away from whoever relies on it, and how we do without."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import CheckContext, CheckResult, Level
from mpesa_gateway.config import DatabaseConfig, GatewayConfig
from mpesa_gateway.db.engine import Database, PoolerDetected, SearchPathLost
from mpesa_gateway.db.invalidation import InvalidationListener
from mpesa_gateway.db.migrator import migrate, pending
from mpesa_gateway.doctor.postgres import check_postgres
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import eventually, gateway_values
from tests.pooler.conftest import Bouncing, prepare_role


@asynccontextmanager
async def connected(url: str, direct_url: str | None, pool_max: int = 1) -> AsyncGenerator[Database]:
    """A database for the length of the block."""
    direct = None if direct_url is None else Secret(direct_url)
    db = Database(DatabaseConfig(url=Secret(url), direct_url=direct, pool_max=pool_max))
    await db.start()
    try:
        yield db
    finally:
        await db.stop()


async def test_what_was_asked_on_one_connection_is_asked_again_on_another(pooled_url: str, database_url: str) -> None:
    where = "SELECT pg_backend_pid(), current_schema(), $1::text AS said"
    async with connected(pooled_url, database_url) as db, connected(pooled_url, database_url) as other:
        async with db.session() as direct:
            await direct.execute("CREATE SCHEMA mpesa; CREATE TABLE mpesa.till (amount int)")
        first, *rest = tuple(await db.fetchrow(where, "one") or ())
        assert rest == ["mpesa", "one"]
        async with other.transaction():
            # It holds the connection that the question was asked on.
            assert await other.fetchval("SELECT pg_backend_pid()") == first
            for ask in (db.fetch, db.fetch_planned):
                (row,) = await ask(where, "two")
                assert row[0] != first
                assert tuple(row)[1:] == ("mpesa", "two")
            await db.executemany("INSERT INTO till VALUES ($1)", [(1,), (2,)])
        async with db.transaction():
            await db.execute("INSERT INTO till VALUES ($1)", 3)
        assert await db.fetchval("SELECT sum(amount) FROM till") == 6


async def test_many_at_once_on_few_connections_take_turns_and_get_their_own_answers(
    pooled_url: str, database_url: str
) -> None:
    async with connected(pooled_url, database_url, 20) as db:
        async with db.session() as direct:
            await direct.execute(
                "CREATE SCHEMA mpesa; CREATE TABLE mpesa.till (amount int); INSERT INTO till VALUES (0)"
            )

        async def add(number: int) -> None:
            async with db.transaction():
                await db.execute("SELECT pg_advisory_xact_lock($1)", 7)
                amount = await db.fetchval("SELECT amount FROM till")
                await db.execute("UPDATE till SET amount = $1", amount + 1)
            assert await db.fetchval(f"SELECT $1::int + {number % 5}", number) == number + number % 5

        await asyncio.gather(*map(add, range(60)))
        assert await db.fetchval("SELECT amount FROM till") == 60
        assert await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_changes_are_heard_past_the_pooler(pooled_url: str, database_url: str) -> None:
    async with connected(pooled_url, database_url) as db:
        changes, heard = InvalidationListener(db), list[str]()
        changes.on("key", heard.append)
        await changes.start()
        try:

            async def is_listening() -> bool:
                return changes.is_listening

            await eventually(is_listening, 10)
            await db.execute("SELECT pg_notify('mpesa_changed', 'key:one')")

            async def has_heard() -> bool:
                return heard == ["one"]

            await eventually(has_heard, 10)
        finally:
            await changes.stop()


async def test_two_that_migrate_at_once_leave_no_lock_and_no_setting_behind(pooled_url: str, database_url: str) -> None:
    gateway = Gateway(GatewayConfig.from_values(gateway_values(database_url, "valkey://127.0.0.1:1")))
    async with connected(pooled_url, database_url) as one, connected(pooled_url, database_url) as two:
        applied = await asyncio.gather(migrate(one, gateway.migrations), migrate(two, gateway.migrations))
        assert sorted(map(len, applied)) == [0, len(gateway.migrations)]
        assert await pending(one, gateway.migrations) == []

        async def has_let_go() -> bool:
            return bool(await one.fetchval("SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'"))

        await eventually(has_let_go, 10)
        assert await one.fetchval("SELECT current_setting('statement_timeout')") == "30s"


@pytest.mark.parametrize(
    "ignores", ["extra_float_digits", "search_path, statement_timeout, idle_in_transaction_session_timeout"]
)
async def test_a_pooler_that_nobody_told_us_of_is_refused(database_url: str, bouncing: Bouncing, ignores: str) -> None:
    await prepare_role(database_url)
    with pytest.raises(PoolerDetected, match=r"database\.direct_url"):
        async with connected(bouncing(ignores=ignores), None):
            pass


async def test_no_table_is_looked_for_in_a_schema_that_is_not_ours(database_url: str, bouncing: Bouncing) -> None:
    with pytest.raises(SearchPathLost, match="SET search_path = mpesa"):
        async with connected(bouncing(), database_url):
            pass
    async with connected(bouncing(connect_query="SET search_path = mpesa"), database_url) as db:
        assert await db.fetchval("SELECT current_setting('search_path')") == "mpesa"


async def test_nothing_is_migrated_through_a_pooler(pooled_url: str) -> None:
    async with connected(pooled_url, pooled_url) as db:
        with pytest.raises(PoolerDetected):
            await migrate(db, [])


async def seen(values: dict[str, Any]) -> dict[str, CheckResult]:
    """What the doctor sees of Postgres."""
    gateway = Gateway(GatewayConfig.from_values(values))
    db = Database(gateway.config.database)
    try:
        examination = CheckContext(now=gateway.clock.now(), is_live=True)
        return {found.name: found async for found in check_postgres(gateway, db, examination)}
    finally:
        if db.is_running:
            await db.stop()


async def test_the_doctor_tells_what_a_pooler_breaks(database_url: str, servers: Any, bouncing: Bouncing) -> None:
    async def level(**database: Any) -> tuple[Level, str]:
        found = (await seen(gateway_values(database_url, "valkey://127.0.0.1:1", database=database)))["postgres.pooler"]
        return found.level, f"{found.text} {found.fix}"

    url = bouncing()
    for settings, says in (
        ({"url": url}, "database.direct_url"),
        ({"url": url, "direct_url": database_url}, "ALTER ROLE"),
    ):
        assert (await level(**settings))[0] is Level.PROBLEM
        assert says in (await level(**settings))[1]
    await prepare_role(database_url, timeouts=False)
    url = bouncing()
    without = await level(url=url, direct_url=database_url)
    assert without[0] is Level.WARNING
    assert "statement_timeout" in without[1]
    await prepare_role(database_url)
    url = bouncing()
    assert (await level(url=url, direct_url=database_url))[0] is Level.OK
    for wrong, says in (
        (url, "a pooler too"),
        (servers.database_url, "different databases"),
        ("postgresql://127.0.0.1:1/shop", "cannot be reached"),
    ):
        found = await level(url=url, direct_url=wrong)
        assert found[0] is Level.PROBLEM
        assert says in found[1]


async def test_without_a_pooler_the_doctor_says_nothing_of_one(database_url: str) -> None:
    assert "postgres.pooler" not in await seen(gateway_values(database_url, "valkey://127.0.0.1:1"))
