"""Migrations: each once however many start at once, none that was changed, nothing half done."""

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
    """A package with these files in it; gives its name."""
    home = folder / name
    home.mkdir()
    for file, text in files.items():
        (home / file).write_text(text)
    return name


async def ledger(db: Database) -> list[tuple[str, int]]:
    """What Postgres says has been applied."""
    rows = await db.fetch("SELECT owner, number FROM migration ORDER BY owner, number")
    return [(row["owner"], row["number"]) for row in rows]


async def migrating(environ: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """A process that migrates, as a host types it, once it has ended."""
    return await asyncio.to_thread(forks.run, ("migrate",), folder=folder, environ=environ, reads="", patience=120)


async def test_six_processes_at_once_apply_each_migration_once(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)} | {
        f"{ENVIRONMENT}DATABASE__URL": database_url,
        f"{ENVIRONMENT}VALKEY__URL": valkey_url,
        f"{ENVIRONMENT}SECURITY__MASTER_KEY": generate(),
    }
    watcher = await asyncpg.connect(database_url)
    barrier = await asyncpg.connect(database_url)
    # A schema that is being made and then is not: nobody gets past it before all six have arrived.
    making = barrier.transaction()
    await making.start()
    await barrier.execute("CREATE SCHEMA mpesa")
    processes = asyncio.gather(*(migrating(environ, tmp_path) for _ in range(6)))

    async def all_wait() -> bool:
        arrived = await watcher.fetchrow(
            "SELECT count(*) AS here, count(*) FILTER (WHERE wait_event_type = 'Lock') AS stuck FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'mpesa-gateway'"
        )
        # One makes the schema, and the others wait for that one.
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


async def test_a_plugin_that_is_not_enabled_any_more_leaves_its_tables_in_peace(db: Database) -> None:
    await migrate(db, [ONE, OTHER])
    assert await pending(db, [ONE]) == []
    assert await migrate(db, [ONE, TWO]) == [TWO]
    assert await db.fetchval("SELECT to_regclass('cafe') IS NOT NULL")


async def test_everything_is_made_in_the_schema_of_the_gateway_and_not_in_public(db: Database) -> None:
    await migrate(db, [ONE])
    tables = await db.fetch(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'mpesa') ORDER BY tablename"
    )
    assert [tuple(row) for row in tables] == [("mpesa", "migration"), ("mpesa", "one")]


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(db: Database) -> None:
    await migrate(db, [ONE])
    changed = Migration(ONE.owner, ONE.number, ONE.name, ONE.sql + " -- better")
    for use in (migrate, pending):
        with pytest.raises(MigrationError, match=r"shop/0001_one\.sql has changed.*: restore the released file"):
            await use(db, [changed, TWO])
    assert await ledger(db) == [("shop", 1)]


async def test_a_newer_release_may_have_added_to_the_database(db: Database) -> None:
    await migrate(db, [ONE, TWO])
    assert await pending(db, [ONE, OTHER]) == [OTHER]
    assert await migrate(db, [ONE, OTHER]) == [OTHER]
    assert await ledger(db) == [("cafe", 1), ("shop", 1), ("shop", 2)]


async def test_a_database_that_a_newer_release_has_taken_something_from_is_refused(db: Database) -> None:
    await migrate(db, [ONE, TWO, GONE])
    for use in (migrate, pending):
        with pytest.raises(MigrationError, match=r"ahead .*\(shop: 0003_gone\.sql took away .*\): run the newer"):
            await use(db, [ONE, TWO, OTHER])
    assert await ledger(db) == [("shop", 1), ("shop", 2), ("shop", 3)]
    assert await pending(db, [ONE, TWO, GONE]) == []


async def test_a_ledger_from_before_it_told_of_contracts_is_brought_up_to_date(db: Database) -> None:
    await migrate(db, [ONE])
    await db.execute("ALTER TABLE migration DROP COLUMN contracts")
    assert await pending(db, [ONE, TWO]) == [TWO]
    assert await migrate(db, [ONE, TWO, GONE]) == [TWO, GONE]
    with pytest.raises(MigrationError, match="took away"):
        await pending(db, [ONE, TWO])


@pytest.mark.parametrize("bad", ["CREATE TABLE broken (", "SELECT 1 / 0", "INSERT INTO one VALUES ('x')"])
async def test_a_migration_that_fails_leaves_nothing_behind(db: Database, bad: str) -> None:
    failing = Migration("shop", 2, "0002_bad.sql", "CREATE TABLE half (number integer); " + bad)
    with pytest.raises(asyncpg.PostgresError):
        await migrate(db, [ONE, failing])
    assert await db.fetchval("SELECT to_regclass('half')") is None
    assert await ledger(db) == [("shop", 1)]
    assert await pending(db, [ONE, TWO]) == [TWO]
    assert await migrate(db, [ONE, TWO]) == [TWO]


async def test_a_migration_lets_go_of_a_table_in_use_so_that_traffic_never_stands_behind_it(db: Database) -> None:
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
        # Behind a migration that waits for ever, this would too.
        assert await db.fetch("SELECT number FROM one") != []
    assert not migrating.done()
    await reading.rollback()
    assert await migrating == [TWO]
    await reader.close()


async def test_a_table_that_is_always_in_use_is_given_up_with_advice(db: Database) -> None:
    await migrate(db, [ONE])
    reader = await asyncpg.connect(db.engine.config["dsn"], server_settings={"search_path": "mpesa"})
    async with reader.transaction():
        await reader.fetch("SELECT * FROM one")
        with pytest.raises(MigrationError, match=r"shop/0002_two\.sql could not lock its tables: end the transaction"):
            await migrate(db, [ONE, TWO], lock_timeout=0.05, patience=0.2, pause=0.05)
    assert await pending(db, [ONE, TWO]) == [TWO]
    assert await migrate(db, [ONE, TWO]) == [TWO]
    # What was set for migrations is not left behind on the connection.
    assert await db.fetchval("SHOW lock_timeout") == "0"
    await reader.close()


async def test_an_index_is_made_while_others_write_and_processes_that_wait_do_not_hold_it_up(db: Database) -> None:
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
async def test_what_an_interrupted_index_has_left_is_cleared_up(db: Database, *, is_valid: bool) -> None:
    await migrate(db, [ONE])
    await db.execute("INSERT INTO one VALUES (1)")
    if is_valid:
        await db.execute("CREATE INDEX one_number ON one (number)")
    else:
        # It fails on the doubled row, and leaves an index that is good for nothing.
        with pytest.raises(asyncpg.UniqueViolationError):
            await db.execute("CREATE UNIQUE INDEX CONCURRENTLY one_number ON one (number)")
    assert await migrate(db, [ONE, INDEX]) == [INDEX]
    row = await db.fetchrow("SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = 'one_number'::regclass")
    assert row is not None
    assert tuple(row) == (True, False)


async def test_what_is_made_concurrently_stands_alone(db: Database) -> None:
    crowded = Migration("shop", 2, "0002_crowd.sql", INDEX.sql + "ALTER TABLE one ADD COLUMN word text")
    with pytest.raises(
        MigrationError, match=r"shop/0002_crowd\.sql: what is made CONCURRENTLY needs a file of its own"
    ):
        await migrate(db, [ONE, crowded])
    assert await ledger(db) == [("shop", 1)]


async def test_a_migration_may_take_longer_than_a_query_may(database_url: str) -> None:
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
def test_numbers_with_a_gap_or_twice_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], numbers: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = package(tmp_path, tmp_path.name, dict.fromkeys(files, "SELECT 1"))
    with pytest.raises(MigrationError, match=rf"^migrations of shop must be numbered .*: found {numbers}$"):
        find("shop", name)


def test_files_are_found_in_order_and_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {"0002_b.sql": "SELECT 2", "0001_a.sql": "SELECT 1", "README.md": "x", "0003_c.sql.orig": "x", "x.sql": ""}
    found = find("shop", package(tmp_path, "orderly", files))
    assert [(one.owner, one.number, one.name, one.sql) for one in found] == [
        ("shop", 1, "0001_a.sql", "SELECT 1"),
        ("shop", 2, "0002_b.sql", "SELECT 2"),
    ]
    assert len({one.digest for one in found}) == 2


async def test_a_gateway_that_must_not_migrate_says_how_to(database_url: str, valkey_url: str) -> None:
    values = {"database": {"url": database_url}, "valkey": {"url": valkey_url}, "security": {"master_key": generate()}}
    gateway = Gateway(GatewayConfig.from_values(values))
    with pytest.raises(ConfigError, match="migrations are not applied: run `mpesa-gateway migrate`"):
        await gateway.start(migrate_first=False)
    await gateway.start()
    await gateway.stop()
    await gateway.start(migrate_first=False)
    assert gateway.is_running
    await gateway.stop()
