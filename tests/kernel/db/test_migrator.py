"""Protects migrations: each runs once even if several processes start, and a failure leaves nothing."""

import asyncio
import os
import subprocess
from pathlib import Path

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ENVIRONMENT, ConfigError, DatabaseConfig, GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import Migration, MigrationError, find, migrate, pending
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.serving import eventually
from tests.forking import forks

ONE = Migration("shop", 1, "0001_one.sql", "CREATE TABLE one (number integer); INSERT INTO one VALUES (1);")
TWO = Migration("shop", 2, "0002_two.sql", "ALTER TABLE one ADD COLUMN word text")
GONE = Migration("shop", 3, "0003_gone.sql", "-- contract: nothing reads it\nALTER TABLE one DROP COLUMN word")
INDEX = Migration("shop", 2, "0002_index.sql", "-- Quick.\nCREATE INDEX CONCURRENTLY one_number ON one (number);\n")
OTHER = Migration("cafe", 1, "0001_cafe.sql", "CREATE TABLE cafe (number integer)")


def package(folder: Path, name: str, files: dict[str, str]) -> str:
    """Create a package with these files and return its name."""
    home = folder / name
    home.mkdir()
    for file, text in files.items():
        (home / file).write_text(text)
    return name


async def ledger(db: Database) -> list[tuple[str, int]]:
    """Return the migrations that Postgres has recorded."""
    rows = await db.fetch("SELECT owner, number FROM migration ORDER BY owner, number")
    return [(row["owner"], row["number"]) for row in rows]


async def migrating(environ: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `migrate` in a process to its end."""
    return await asyncio.to_thread(forks.run, ("migrate",), folder=folder, environ=environ, reads="", patience=120)


async def test_migrate_by_six_processes_at_once_applies_each_migration_once(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)} | {
        f"{ENVIRONMENT}DATABASE__URL": database_url,
        f"{ENVIRONMENT}VALKEY__URL": valkey_url,
        f"{ENVIRONMENT}SECURITY__MASTER_KEY": generate(),
    }
    watcher = await asyncpg.connect(database_url)
    barrier = await asyncpg.connect(database_url)
    # An open transaction creates the schema: no process gets past it before all six have arrived.
    making = barrier.transaction()
    await making.start()
    await barrier.execute("CREATE SCHEMA mpesa")
    processes = asyncio.gather(*(migrating(environ, tmp_path) for _ in range(6)))

    async def all_wait() -> bool:
        arrived = await watcher.fetchrow(
            "SELECT count(*) AS here, count(*) FILTER (WHERE wait_event_type = 'Lock') AS stuck FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'mpesa-gateway'"
        )
        # One creates the schema, and the others wait for that one.
        return arrived is not None and tuple(arrived) == (6, 1)

    await eventually(all_wait, 60)
    await making.rollback()
    ends = await processes
    assert [end.returncode for end in ends] == [0] * 6, ends
    applied = [line for end in ends for line in end.stdout.splitlines() if line.startswith("applied ")]
    known = Gateway(GatewayConfig.load(None, environ)).migrations
    assert sorted(applied) == sorted(f"applied {migration.owner}/{migration.name}" for migration in known)
    assert sum(end.stdout.startswith("Nothing to apply") for end in ends) == 5
    rows = await watcher.fetch("SELECT owner, number, digest FROM mpesa.migration")
    assert sorted(map(tuple, rows)) == sorted((one.owner, one.number, one.digest) for one in known)
    await barrier.close()
    await watcher.close()


async def test_pending_names_what_migrate_then_applies_once(db: Database) -> None:
    assert await pending(db, [ONE, TWO]) == [ONE, TWO]
    assert await migrate(db, [ONE]) == [ONE]
    assert await pending(db, [ONE, TWO, OTHER]) == [TWO, OTHER]
    assert await db.fetchval("SELECT to_regclass('cafe')") is None
    assert await migrate(db, [ONE, TWO, OTHER]) == [TWO, OTHER]
    assert await migrate(db, [ONE, TWO, OTHER]) == []
    assert await pending(db, [ONE, TWO, OTHER]) == []
    assert await ledger(db) == [("cafe", 1), ("shop", 1), ("shop", 2)]
    assert await db.fetchval("SELECT count(*) FROM one") == 1


async def test_migrate_leaves_tables_of_a_disabled_plugin(db: Database) -> None:
    await migrate(db, [ONE, OTHER])
    assert await pending(db, [ONE]) == []
    assert await migrate(db, [ONE, TWO]) == [TWO]
    assert await db.fetchval("SELECT to_regclass('cafe') IS NOT NULL")


async def test_migrate_creates_everything_in_the_gateways_schema(db: Database) -> None:
    await migrate(db, [ONE])
    tables = await db.fetch(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'mpesa') ORDER BY tablename"
    )
    assert [tuple(row) for row in tables] == [("mpesa", "migration"), ("mpesa", "one")]


async def test_migrate_of_a_file_changed_after_it_was_applied_is_refused(db: Database) -> None:
    await migrate(db, [ONE])
    changed = Migration(ONE.owner, ONE.number, ONE.name, ONE.sql + " -- better")
    for use in (migrate, pending):
        with pytest.raises(MigrationError, match=r"shop/0001_one\.sql has changed.*: restore the released file"):
            await use(db, [changed, TWO])
    assert await ledger(db) == [("shop", 1)]


async def test_migrate_of_a_database_extended_by_a_newer_release_succeeds(db: Database) -> None:
    await migrate(db, [ONE, TWO])
    assert await pending(db, [ONE, OTHER]) == [OTHER]
    assert await migrate(db, [ONE, OTHER]) == [OTHER]
    assert await ledger(db) == [("cafe", 1), ("shop", 1), ("shop", 2)]


async def test_migrate_of_a_database_contracted_by_a_newer_release_is_refused(db: Database) -> None:
    await migrate(db, [ONE, TWO, GONE])
    for use in (migrate, pending):
        with pytest.raises(MigrationError, match=r"ahead .*\(shop: 0003_gone\.sql took away .*\): run the newer"):
            await use(db, [ONE, TWO, OTHER])
    assert await ledger(db) == [("shop", 1), ("shop", 2), ("shop", 3)]
    assert await pending(db, [ONE, TWO, GONE]) == []


async def test_migrate_of_an_old_ledger_without_contracts_updates_it(db: Database) -> None:
    await migrate(db, [ONE])
    await db.execute("ALTER TABLE migration DROP COLUMN contracts")
    assert await pending(db, [ONE, TWO]) == [TWO]
    assert await migrate(db, [ONE, TWO, GONE]) == [TWO, GONE]
    with pytest.raises(MigrationError, match="took away"):
        await pending(db, [ONE, TWO])


@pytest.mark.parametrize("bad", ["CREATE TABLE broken (", "SELECT 1 / 0", "INSERT INTO one VALUES ('x')"])
async def test_migrate_that_fails_leaves_nothing_behind(db: Database, bad: str) -> None:
    failing = Migration("shop", 2, "0002_bad.sql", "CREATE TABLE half (number integer); " + bad)
    with pytest.raises(asyncpg.PostgresError):
        await migrate(db, [ONE, failing])
    assert await db.fetchval("SELECT to_regclass('half')") is None
    assert await ledger(db) == [("shop", 1)]
    assert await pending(db, [ONE, TWO]) == [TWO]
    assert await migrate(db, [ONE, TWO]) == [TWO]


async def test_migrate_of_a_table_in_use_retries_without_blocking_queries(db: Database) -> None:
    await migrate(db, [ONE])
    reader = await asyncpg.connect(db.engine.config["dsn"], server_settings={"search_path": "mpesa"})
    reading = reader.transaction()
    await reading.start()
    await reader.fetch("SELECT * FROM one")
    migrating = asyncio.create_task(migrate(db, [ONE, TWO], lock_timeout=0.1, pause=0.1))

    async def has_queued() -> bool:
        return bool(await db.fetchval("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"))

    for _ in range(3):
        await eventually(has_queued)
        # Behind a migration that waits for its lock, this query would wait too.
        assert await db.fetch("SELECT number FROM one") != []
    assert not migrating.done()
    await reading.rollback()
    assert await migrating == [TWO]
    await reader.close()


async def test_migrate_of_a_table_always_in_use_is_refused_with_advice(db: Database) -> None:
    await migrate(db, [ONE])
    reader = await asyncpg.connect(db.engine.config["dsn"], server_settings={"search_path": "mpesa"})
    async with reader.transaction():
        await reader.fetch("SELECT * FROM one")
        with pytest.raises(MigrationError, match=r"shop/0002_two\.sql could not lock its tables: end the transaction"):
            await migrate(db, [ONE, TWO], lock_timeout=0.05, patience=0.2, pause=0.05)
    assert await pending(db, [ONE, TWO]) == [TWO]
    assert await migrate(db, [ONE, TWO]) == [TWO]
    # The settings of migrations do not stay on the connection.
    assert await db.fetchval("SHOW lock_timeout") == "0"
    await reader.close()


async def test_migrate_creates_an_index_while_others_write(db: Database) -> None:
    await migrate(db, [ONE])
    writer = await asyncpg.connect(db.engine.config["dsn"], server_settings={"search_path": "mpesa"})
    writing = writer.transaction()
    await writing.start()
    await writer.execute("INSERT INTO one VALUES (2)")
    tasks = [asyncio.create_task(migrate(db, [ONE, INDEX])) for _ in range(3)]

    async def is_waiting() -> bool:
        return bool(await db.fetchval("SELECT EXISTS (SELECT 1 FROM pg_stat_progress_create_index)"))

    await eventually(is_waiting)
    await db.execute("INSERT INTO one VALUES (3)")
    await writing.commit()
    assert sorted(len(found) for found in await asyncio.gather(*tasks)) == [0, 0, 1]
    assert await db.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'one_number'::regclass")
    assert await ledger(db) == [("shop", 1), ("shop", 2)]
    await writer.close()


@pytest.mark.parametrize("is_valid", [False, True])
async def test_migrate_removes_the_rest_of_an_interrupted_index(db: Database, *, is_valid: bool) -> None:
    await migrate(db, [ONE])
    await db.execute("INSERT INTO one VALUES (1)")
    if is_valid:
        await db.execute("CREATE INDEX one_number ON one (number)")
    else:
        # It fails on the duplicate row and leaves an invalid index.
        with pytest.raises(asyncpg.UniqueViolationError):
            await db.execute("CREATE UNIQUE INDEX CONCURRENTLY one_number ON one (number)")
    assert await migrate(db, [ONE, INDEX]) == [INDEX]
    row = await db.fetchrow("SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = 'one_number'::regclass")
    assert row is not None
    assert tuple(row) == (True, False)


async def test_migrate_of_a_concurrent_statement_beside_another_is_refused(db: Database) -> None:
    crowded = Migration("shop", 2, "0002_crowd.sql", INDEX.sql + "ALTER TABLE one ADD COLUMN word text")
    with pytest.raises(
        MigrationError, match=r"shop/0002_crowd\.sql: what is made CONCURRENTLY needs a file of its own"
    ):
        await migrate(db, [ONE, crowded])
    assert await ledger(db) == [("shop", 1)]


async def test_migrate_may_take_longer_than_a_query(database_url: str) -> None:
    db = Database(DatabaseConfig(url=Secret(database_url), statement_timeout=0.2))
    await db.start()
    slow = "SELECT pg_sleep(0.4)"
    with pytest.raises(asyncpg.QueryCanceledError):
        await db.execute(slow)
    assert len(await migrate(db, [Migration("shop", 1, "0001_slow.sql", slow)])) == 1
    with pytest.raises(asyncpg.QueryCanceledError):
        await db.execute(slow)
    await db.stop()


@pytest.mark.parametrize(
    ("files", "numbers"),
    [
        (["0001_a.sql", "0003_c.sql"], r"\[1, 3\]"),
        (["0002_b.sql"], r"\[2\]"),
        (["0001_a.sql", "0001_b.sql"], r"\[1, 1\]"),
        (["0000_zero.sql", "0001_a.sql"], r"\[0, 1\]"),
    ],
)
def test_find_numbers_with_a_gap_or_twice_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], numbers: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = package(tmp_path, tmp_path.name, dict.fromkeys(files, "SELECT 1"))
    with pytest.raises(MigrationError, match=rf"^migrations of shop must be numbered .*: found {numbers}$"):
        find("shop", name)


def test_find_returns_migrations_in_order_and_ignores_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {"0002_b.sql": "SELECT 2", "0001_a.sql": "SELECT 1", "README.md": "x", "0003_c.sql.orig": "x", "x.sql": ""}
    found = find("shop", package(tmp_path, "orderly", files))
    assert [(one.owner, one.number, one.name, one.sql) for one in found] == [
        ("shop", 1, "0001_a.sql", "SELECT 1"),
        ("shop", 2, "0002_b.sql", "SELECT 2"),
    ]
    assert len({one.digest for one in found}) == 2


async def test_gateway_start_without_migrating_names_the_command(database_url: str, valkey_url: str) -> None:
    values = {"database": {"url": database_url}, "valkey": {"url": valkey_url}, "security": {"master_key": generate()}}
    gateway = Gateway(GatewayConfig.from_values(values))
    with pytest.raises(ConfigError, match="migrations are not applied: run `mpesa-gateway migrate`"):
        await gateway.start(migrate_first=False)
    await gateway.start()
    await gateway.stop()
    await gateway.start(migrate_first=False)
    assert gateway.is_running
    await gateway.stop()
