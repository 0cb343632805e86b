"""Protects the doctor's checks of Postgres: each setting in its right and wrong state."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import CheckContext, CheckResult
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import migrate
from mpesa_gateway.doctor.postgres import check_postgres, connections_result, version_result, writable_result
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.pytest_plugin import Servers
from mpesa_gateway.testing.serving import eventually
from tests.looking import ShiftedClock, levels

pytestmark = pytest.mark.as_owner

DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


async def seen(gateway: Gateway, *, is_live: bool = True) -> dict[str, CheckResult]:
    """Return the results for the gateway's Postgres."""
    db = Database(gateway.config.database)
    examination = CheckContext(now=gateway.clock.now(), is_live=is_live)
    try:
        return {found.name: found async for found in check_postgres(gateway, db, examination)}
    finally:
        if db.is_running:
            await db.stop()


@pytest.fixture(scope="module", autouse=True)
def durable(servers: Servers) -> Iterator[None]:
    """The tests' Postgres is fast and not durable. Here it is durable."""

    async def settle(change: str, expected: str) -> None:
        connection = await asyncpg.connect(servers.database_url)
        for setting in DURABLE:
            await connection.execute(f"ALTER SYSTEM {change.format(setting)}")
        await connection.execute("SELECT pg_reload_conf()")

        async def is_so() -> bool:
            return all([await connection.fetchval("SELECT current_setting($1)", each) == expected for each in DURABLE])

        await eventually(is_so)
        await connection.close()

    servers.aside.run(settle("SET {} = on", "on"))
    yield
    servers.aside.run(settle("RESET {}", "off"))


@pytest.fixture
def gateway(values: dict[str, Any]) -> Gateway:
    """Return a gateway that has not been started."""
    return Gateway(GatewayConfig.from_values(values))


async def apply_migrations(gateway: Gateway) -> None:
    """Migrate its database to this release."""
    db = Database(gateway.config.database)
    await db.start()
    await migrate(db, gateway.migrations)
    await db.stop()


@asynccontextmanager
async def changed(url: str, change: str, undo: str, setting: str) -> AsyncGenerator[None]:
    """Change a setting of the whole server for the length of the block."""
    connection = await asyncpg.connect(url)
    before = await connection.fetchval("SELECT current_setting($1)", setting)

    async def has_changed() -> bool:
        return bool(await connection.fetchval("SELECT current_setting($1) <> $2", setting, before))

    async def is_as_before() -> bool:
        return not await has_changed()

    try:
        for statement in (change, "SELECT pg_reload_conf()"):
            await connection.execute(statement)
        await eventually(has_changed)
        yield
    finally:
        for statement in (undo, "SELECT pg_reload_conf()"):
            await connection.execute(statement)
        await eventually(is_as_before)
        await connection.close()


async def test_look_at_postgres_in_order_reports_ok(gateway: Gateway) -> None:
    await apply_migrations(gateway)
    assert levels(await seen(gateway)) == {
        f"postgres.{name}": "ok" for name in ("reachable", "version", "durable", "connections", "migrations", "clock")
    } | {"postgres.role": "warning"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("mpesa:", "mpesa:wrong"), "refuses us"),
        (("/test_", "/gone_"), "refuses us"),
        (("@127.0.0.1:", "@127.0.0.1:9/?krbsrvname="), "cannot be reached"),
    ],
)
async def test_look_at_postgres_without_access_reports_a_problem_without_the_password(
    gateway: Gateway, change: tuple[str, str], words: str
) -> None:
    url = gateway.config.database.url
    assert url is not None
    password = url.reveal().partition("mpesa:")[2].partition("@")[0]
    config = msgspec.structs.replace(
        gateway.config,
        database=msgspec.structs.replace(gateway.config.database, url=Secret(url.reveal().replace(*change))),
    )
    found = await seen(Gateway(config))
    assert levels(found) == {"postgres.reachable": "problem"}
    assert words in found["postgres.reachable"].text
    assert password not in str(found)


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_look_at_postgres_without_durability_reports_a_problem(
    gateway: Gateway, database_url: str, setting: str
) -> None:
    await apply_migrations(gateway)
    change, undo = f"ALTER SYSTEM SET {setting} = off", f"ALTER SYSTEM SET {setting} = on"
    async with changed(database_url, change, undo, setting):
        found = (await seen(gateway))["postgres.durable"]
        assert (found.level, setting in found.text) == ("problem", True)
        assert (await seen(gateway, is_live=False))["postgres.durable"].level == "warning"


async def test_look_at_postgres_with_asynchronous_commits_reports_a_problem(
    gateway: Gateway, database_url: str
) -> None:
    await apply_migrations(gateway)
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"ALTER ROLE mpesa IN DATABASE {_name(database_url)} SET synchronous_commit = off")
    await connection.close()
    found = (await seen(gateway))["postgres.durable"]
    assert (found.level, "synchronous_commit" in found.text) == ("problem", True)


async def test_look_at_postgres_that_is_read_only_reports_a_problem(gateway: Gateway, database_url: str) -> None:
    await apply_migrations(gateway)
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"ALTER DATABASE {_name(database_url)} SET default_transaction_read_only = on")
    await connection.close()
    assert (await seen(gateway))["postgres.writable"].level == "problem"


def test_see_role_of_a_standby_reports_a_problem() -> None:
    row: Any = {"is_standby": True, "read_only": "on"}
    (found,) = writable_result(row)
    assert (found.level, "standby" in found.text) == ("problem", True)


def test_see_version_of_an_old_postgres_warns() -> None:
    old: Any = {"number": 130_004, "version": "13.4"}
    assert version_result(old).level == "warning"


async def test_look_at_postgres_with_few_free_connections_warns(gateway: Gateway, database_url: str) -> None:
    await apply_migrations(gateway)
    connections = [await asyncpg.connect(database_url) for _ in range(165)]
    try:
        found = (await seen(gateway))["postgres.connections"]
    finally:
        for connection in connections:
            await connection.close()
    assert (found.level, "max_connections" in (found.fix or "")) == ("warning", True)


def test_see_connections_over_the_network_without_tls_warns() -> None:
    row: Any = {"used": 1, "connections": 100, "is_encrypted": False, "is_local": False}
    assert {found.name: found.level for found in connections_result(row)} == {
        "postgres.connections": "ok",
        "postgres.encrypted": "warning",
    }


async def test_look_at_postgres_at_another_release_reports_a_problem(gateway: Gateway, database_url: str) -> None:
    found = (await seen(gateway))["postgres.migrations"]
    assert (found.level, "mpesa-gateway migrate" in (found.fix or "")) == ("problem", True)
    await apply_migrations(gateway)
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "mpesa"})
    await connection.execute("UPDATE migration SET digest = 'other' WHERE owner = 'payments' AND number = 1")
    found = (await seen(gateway))["postgres.migrations"]
    assert (found.level, "has changed since" in found.text) == ("problem", True)
    await connection.execute("DELETE FROM migration WHERE owner = 'payments' AND number = 1")
    found = (await seen(gateway))["postgres.migrations"]
    assert "payments/0001_payments.sql" in found.text
    await connection.close()


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (10, "warning"), (-10, "warning"), (100, "problem")])
async def test_look_at_postgres_with_a_different_clock_reports_the_difference(
    values: dict[str, Any], ahead: int, level: str
) -> None:
    gateway = Gateway(GatewayConfig.from_values(values), clock=ShiftedClock(ahead))
    found = (await seen(gateway))["postgres.clock"]
    assert found.level == level
    if ahead:
        assert ("ahead of" if ahead > 0 else "behind") in found.text


def _name(url: str) -> str:
    return url.rpartition("/")[2]
