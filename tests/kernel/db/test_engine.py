"""Protects transactions: atomic, one per task, deferred writes, and callbacks only after the commit."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TypeAlias

import asyncpg
import pytest
from piccolo.columns import Text
from piccolo.table import Table

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.deferred import ConcurrentUpdate, DeferredWrite, OnWritten
from mpesa_gateway.db.engine import Database, DatabaseNotNamed, TransactionRolledBack
from mpesa_gateway.db.migrator import Migration, migrate
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import eventually

Outsider: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Note(Table, tablename="note"):
    """A table of this test."""

    word = Text(primary_key=True)


_NOTES = """
CREATE TABLE note (word text PRIMARY KEY);
CREATE TABLE sum (words integer NOT NULL);
INSERT INTO sum VALUES (0)
"""

_KERNEL = (files("mpesa_gateway.db.migrations") / "0001_kernel.sql").read_text(encoding="utf-8")
WRITTEN_AS_EXPECTED = _KERNEL[_KERNEL.index("CREATE FUNCTION written_as_expected") :].partition("$$;")[0] + "$$"


def note(*words: str, on_written: OnWritten | None = None) -> DeferredWrite:
    """Return a write of these words."""
    return DeferredWrite(
        "INSERT INTO note SELECT unnest($1::text[]) RETURNING word", (list(words),), on_written=on_written
    )


class Oops(Exception):
    """The error of these tests."""


@pytest.fixture
async def notes(db: Database) -> Database:
    """Return a database with the table, bound."""
    await migrate(db, [Migration("test", 1, "0001_note.sql", _NOTES)])
    await db.execute(WRITTEN_AS_EXPECTED)
    db.bind([Note])
    return db


@pytest.fixture
async def outsider(database_url: str) -> AsyncGenerator[Outsider]:
    """Yield a connection that sees only committed rows."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def write(db: Database, word: str) -> None:
    """Write a word by SQL."""
    await db.execute("INSERT INTO note VALUES ($1)", word)


@asynccontextmanager
async def doomed(db: Database) -> AsyncGenerator[None]:
    """Open a transaction that is rolled back at its end."""
    with suppress(Oops):
        async with db.transaction():
            yield
            raise Oops


def is_inside(db: Database) -> bool:
    return db.in_transaction


async def seen(outsider: Outsider) -> list[str]:
    """Return the committed words."""
    return [row["word"] for row in await outsider.fetch("SELECT word FROM mpesa.note ORDER BY word")]


async def test_transaction_shows_its_changes_only_after_the_commit(notes: Database, outsider: Outsider) -> None:
    assert not is_inside(notes)
    async with notes.transaction():
        assert is_inside(notes)
        await write(notes, "a")
        assert await notes.fetchval("SELECT count(*) FROM note") == 1
        assert await seen(outsider) == []
    assert not is_inside(notes)
    assert await seen(outsider) == ["a"]


async def test_transaction_that_fails_is_undone_and_raises(notes: Database, outsider: Outsider) -> None:
    async def work() -> None:
        async with notes.transaction():
            await write(notes, "a")
            await notes.executemany("INSERT INTO note VALUES ($1)", [("b",), ("c",)])
            raise Oops

    with pytest.raises(Oops):
        await work()
    assert not is_inside(notes)
    assert await seen(outsider) == []


async def test_transaction_of_a_cancelled_task_is_undone_and_returns_its_connection(
    database_url: str, notes: Database, outsider: Outsider
) -> None:
    narrow = Database(DatabaseConfig(url=Secret(database_url), pool_max=1))
    await narrow.start()
    began = asyncio.Event()

    async def work() -> None:
        async with narrow.transaction():
            await write(narrow, "a")
            began.set()
            await asyncio.sleep(60)

    for _ in range(3):
        began.clear()
        task = asyncio.create_task(work())
        await asyncio.wait_for(began.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(5):
        assert await narrow.fetchval("SELECT count(*) FROM note") == 0
    await narrow.stop()
    assert await seen(outsider) == []
    assert notes.is_running


async def test_transaction_includes_piccolo_queries(notes: Database, outsider: Outsider) -> None:
    async with doomed(notes):
        await Note(word="lost").save()
        assert await notes.fetchval("SELECT count(*) FROM note") == 1
        await write(notes, "lost too")
        assert await Note.count() == 2
    assert await seen(outsider) == []
    async with notes.transaction():
        await Note.insert(Note(word="kept"))
        assert await seen(outsider) == []
    assert await seen(outsider) == ["kept"]
    assert await notes.run(Note.exists().where(Note.word == "kept"))
    with pytest.raises(DatabaseNotNamed, match=r"`await gateway\.db\.run\(query\)`"):
        await Note.count()


async def test_nested_transaction_is_part_of_the_outer_one(notes: Database, outsider: Outsider) -> None:
    async with doomed(notes):
        await write(notes, "outer")
        async with notes.transaction():
            await write(notes, "inner")
        assert is_inside(notes)
        assert await seen(outsider) == []
    assert await seen(outsider) == []
    async with notes.transaction():
        async with notes.transaction():
            await write(notes, "inner")
        await write(notes, "outer")
    assert await seen(outsider) == ["inner", "outer"]


async def test_deferred_writes_alone_are_one_statement_without_a_transaction(
    notes: Database, outsider: Outsider
) -> None:
    heard: list[object] = []

    async def keep(words: Sequence[str]) -> None:
        heard.append((list(words), await seen(outsider)))
        await notes.after_commit(committed)

    async def committed() -> None:
        heard.append("committed")

    async with notes.transaction():
        await notes.defer(note("one", "two", on_written=keep))
        await notes.defer(DeferredWrite("UPDATE sum SET words = words + 2 RETURNING words::text", (), expects=1))
        assert heard == []
        assert await seen(outsider) == []
    # No transaction had to begin: the callback runs after the commit.
    assert heard == [(["one", "two"], ["one", "two"]), "committed"]
    assert await outsider.fetchval("SELECT words FROM mpesa.sum") == 2


async def test_deferred_write_is_seen_by_later_queries(notes: Database, outsider: Outsider) -> None:
    async with doomed(notes):
        await notes.defer(note("one"))
        assert await notes.fetchval("SELECT word FROM note") == "one"
        await notes.defer(note("two"))
        assert [row["word"] for row in await Note.select().order_by(Note.word)] == ["one", "two"]
        await notes.defer(note("three"))
        await write(notes, "four")
        assert await notes.fetchval("SELECT count(*) FROM note") == 4
        assert await seen(outsider) == []
    assert await seen(outsider) == []


async def test_unlocked_read_begins_no_transaction_and_sees_committed_rows(notes: Database, outsider: Outsider) -> None:
    async with notes.transaction():
        await notes.defer(note("mine"))
        assert await notes.read_unlocked("SELECT word FROM note") == []
        await outsider.execute("INSERT INTO mpesa.note VALUES ('theirs')")
        assert [row["word"] for row in await notes.read_unlocked("SELECT word FROM note")] == ["theirs"]
        await write(notes, "begun")
        # Now there is a transaction to read in.
        assert len(await notes.read_unlocked("SELECT word FROM note")) == 3
    assert await seen(outsider) == ["begun", "mine", "theirs"]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_deferred_write_with_an_unexpected_row_count_writes_nothing(
    notes: Database, outsider: Outsider, *, has_begun: bool
) -> None:
    called: list[str] = []

    async def keep(words: Sequence[str]) -> None:
        called.extend(words)

    async def work() -> None:
        async with notes.transaction():
            if has_begun:
                await write(notes, "zero")
            await notes.defer(note("one", on_written=keep))
            await notes.defer(DeferredWrite("UPDATE sum SET words = 9 WHERE words = 1 RETURNING 'x'", (), expects=1))
            await notes.defer(note("two", on_written=keep))

    with pytest.raises(ConcurrentUpdate, match="wrote 0 rows instead of 1"):
        await work()
    assert called == []
    assert await seen(outsider) == []
    await outsider.execute("UPDATE mpesa.sum SET words = 1")
    await work()
    assert called == ["one", "two"]


async def test_deferred_write_in_a_savepoint_is_undone_with_it(notes: Database, outsider: Outsider) -> None:
    async def fail() -> None:
        async with notes.savepoint():
            await notes.defer(note("inside"))
            raise Oops

    async with notes.transaction():
        await notes.defer(note("before"))
        with pytest.raises(Oops):
            await fail()
        async with notes.savepoint():
            await notes.defer(note("kept"))
        await notes.defer(note("after"))
    assert await seen(outsider) == ["after", "before", "kept"]


async def test_deferred_write_that_fails_in_a_savepoint_fails_alone(notes: Database, outsider: Outsider) -> None:
    await write(notes, "there")

    async def fail() -> None:
        async with notes.savepoint():
            await notes.defer(note("new"))
            await notes.defer(note("there"))

    async with notes.transaction():
        with pytest.raises(asyncpg.UniqueViolationError):
            await fail()
        await notes.defer(note("after"))
    assert await seen(outsider) == ["after", "there"]


async def test_deferred_write_that_fails_raises_at_the_end_of_the_transaction(
    notes: Database, outsider: Outsider
) -> None:
    await write(notes, "there")

    async def work() -> None:
        async with notes.transaction():
            await notes.defer(note("new"))
            await notes.defer(note("there"))

    with pytest.raises(asyncpg.UniqueViolationError):
        await work()
    assert await seen(outsider) == ["there"]
    # Without a transaction, the write runs at once.
    with pytest.raises(asyncpg.UniqueViolationError):
        await notes.defer(note("there"))


async def test_deferred_write_error_that_is_swallowed_raises_again_at_the_end(
    notes: Database, outsider: Outsider
) -> None:
    await write(notes, "there")
    called: list[str] = []

    async def call() -> None:
        called.append("called")

    async def swallow() -> None:
        async with notes.transaction():
            await notes.defer(note("new"))
            await notes.defer(note("there"))
            await notes.after_commit(call)
            with suppress(asyncpg.UniqueViolationError):
                await notes.fetchval("SELECT 1")

    with pytest.raises(asyncpg.UniqueViolationError):
        await swallow()

    async def swallow_what_never_reached_postgres() -> None:
        async with notes.transaction():
            await notes.defer(note("good"))
            await notes.defer(DeferredWrite("INSERT INTO note VALUES ($1) RETURNING word", (5,)))
            await notes.after_commit(call)
            with suppress(asyncpg.DataError):
                async with notes.savepoint():
                    pass

    with pytest.raises(asyncpg.DataError):
        await swallow_what_never_reached_postgres()
    assert called == []
    assert await seen(outsider) == ["there"]


async def swallow(db: Database, *statements: str) -> None:
    """Run statements of which at least one fails, and catch the errors."""
    for statement in statements:
        with suppress(asyncpg.PostgresError):
            await db.execute(statement)


@pytest.mark.parametrize(
    "statements",
    [
        ("INSERT INTO note VALUES ('there')",),
        ("INSERT INTO nowhere VALUES (1)",),
        ("SELECT 1 / 0", "SELECT 2"),
        ("SELECT 1 / 0", "INSERT INTO note VALUES ('after')"),
        ("SET LOCAL statement_timeout = 1; SELECT pg_sleep(1)",),
        ("ROLLBACK",),
        ("ROLLBACK; BEGIN; SELECT 1 / 0",),
    ],
)
async def test_transaction_with_a_swallowed_error_raises_at_commit_and_runs_no_callback(
    notes: Database, outsider: Outsider, statements: tuple[str, ...]
) -> None:
    await write(notes, "there")
    called: list[str] = []

    async def call() -> None:
        called.append("called")

    async def work() -> None:
        async with notes.transaction():
            await write(notes, "good")
            await swallow(notes, *statements)
            await notes.after_commit(call)

    with pytest.raises(TransactionRolledBack):
        await work()
    assert called == []
    assert await seen(outsider) == ["there"]
    async with notes.transaction():
        await write(notes, "next")
    assert await seen(outsider) == ["next", "there"]


async def test_deferred_write_after_a_swallowed_error_is_not_written(notes: Database, outsider: Outsider) -> None:
    async def work() -> None:
        async with notes.transaction():
            await swallow(notes, "SELECT 1 / 0")
            await notes.defer(note("deferred"))

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await work()
    assert await seen(outsider) == []


async def test_savepoint_with_a_swallowed_error_raises_and_is_undone_alone(notes: Database, outsider: Outsider) -> None:
    called: list[str] = []

    async def call() -> None:
        called.append("called")

    async def work() -> None:
        async with notes.savepoint():
            await write(notes, "inner")
            await swallow(notes, "SELECT 1 / 0")
            await notes.after_commit(call)

    async with notes.transaction():
        await write(notes, "outer")
        with pytest.raises(TransactionRolledBack):
            await work()
        await write(notes, "later")
    assert called == []
    assert await seen(outsider) == ["later", "outer"]


async def test_nested_transaction_that_raised_fails_the_outer_one_though_it_is_caught(
    notes: Database, outsider: Outsider
) -> None:
    async def half() -> None:
        async with notes.transaction():
            await write(notes, "half")
            raise Oops

    async def work() -> None:
        async with notes.transaction():
            with suppress(Oops):
                await half()

    with pytest.raises(Oops):
        await work()
    assert await seen(outsider) == []
    async with notes.transaction():
        with suppress(Oops):
            async with notes.savepoint():
                await half()
        await write(notes, "whole")
    assert await seen(outsider) == ["whole"]


async def test_transaction_of_a_host_on_our_connection_is_checked_at_commit(
    notes: Database, outsider: Outsider
) -> None:
    async def work() -> None:
        async with notes.connection() as connection, connection.transaction():
            await connection.execute("INSERT INTO note VALUES ('good')")
            with suppress(asyncpg.PostgresError):
                await connection.execute("SELECT 1 / 0")

    with pytest.raises(TransactionRolledBack):
        await work()
    assert await seen(outsider) == []


async def test_task_that_outlives_its_transaction_raises(notes: Database, outsider: Outsider) -> None:
    is_over = asyncio.Event()

    async def later(work: Callable[[], Awaitable[object]]) -> object:
        await is_over.wait()
        return await work()

    async def nothing() -> None:
        """Runs after the commit."""

    async with notes.transaction():
        await notes.defer(note("inside"))
        outlived = [
            asyncio.create_task(later(work))
            for work in (
                lambda: write(notes, "outside"),
                lambda: notes.defer(note("outside")),
                lambda: notes.after_commit(nothing),
            )
        ]
    is_over.set()
    for problem in await asyncio.gather(*outlived, return_exceptions=True):
        assert isinstance(problem, RuntimeError)
        assert "is over" in str(problem)
    assert await seen(outsider) == ["inside"]


async def test_deferred_writes_of_any_number_are_all_written(notes: Database, outsider: Outsider) -> None:
    words = [f"{number:04}" for number in range(1700)]
    async with notes.transaction():
        for word in words:
            await notes.defer(note(word))
        assert await seen(outsider) == []
    assert await seen(outsider) == words


async def test_deferred_write_callback_may_not_defer_another(notes: Database) -> None:
    async def keep(_: Sequence[str]) -> None:
        await notes.defer(note("second"))

    async def work() -> None:
        async with notes.transaction():
            await notes.defer(note("first", on_written=keep))

    with pytest.raises(RuntimeError, match="cannot defer another"):
        await work()


async def test_transaction_without_a_query_takes_no_connection(database_url: str) -> None:
    nowhere = Database(DatabaseConfig(url=Secret(database_url)))
    async with nowhere.transaction():
        assert is_inside(nowhere)
    assert not is_inside(nowhere)


async def test_transactions_of_concurrent_tasks_are_separate(notes: Database, outsider: Outsider) -> None:
    both = asyncio.Barrier(2)

    async def work(word: str, *, fails: bool) -> None:
        async with notes.transaction():
            await write(notes, word)
            await both.wait()
            assert await notes.fetchval("SELECT array_agg(word) FROM note") == [word]
            await both.wait()
            if fails:
                raise Oops

    ends = await asyncio.gather(work("a", fails=False), work("b", fails=True), return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), Oops]
    assert await seen(outsider) == ["a"]


async def test_savepoint_that_fails_is_undone_alone_with_its_callbacks(notes: Database, outsider: Outsider) -> None:
    ran: list[str] = []

    async def put_off(name: str) -> None:
        async def call() -> None:
            ran.append(name)

        await notes.after_commit(call)

    async def fail() -> None:
        async with notes.savepoint():
            await write(notes, "undone")
            await put_off("undone")
            await write(notes, "before")

    async with notes.transaction():
        await write(notes, "before")
        await put_off("before")
        with pytest.raises(asyncpg.UniqueViolationError):
            await fail()
        async with notes.savepoint():
            await write(notes, "kept")
            await put_off("kept")
        await write(notes, "then")
        await put_off("then")
        assert ran == []
    assert ran == ["before", "kept", "then"]
    assert await seen(outsider) == ["before", "kept", "then"]


async def test_savepoint_without_a_transaction_raises(notes: Database, outsider: Outsider) -> None:
    with pytest.raises(RuntimeError, match=r"async with db\.transaction"):
        async with notes.savepoint():
            await write(notes, "never")
    async with doomed(notes), notes.savepoint():
        await write(notes, "a")
    assert await seen(outsider) == []


async def test_after_commit_callbacks_run_in_order_after_the_commit(notes: Database, outsider: Outsider) -> None:
    found: list[tuple[str, list[str], bool]] = []

    async def put_off(name: str) -> None:
        async def look() -> None:
            found.append((name, await seen(outsider), notes.in_transaction))

        await notes.after_commit(look)

    async with notes.transaction():
        await put_off("first")
        async with notes.transaction():
            await put_off("nested")
        await write(notes, "a")
        assert found == []
    assert found == [("first", ["a"], False), ("nested", ["a"], False)]
    await put_off("outside")
    assert found[2:] == [("outside", ["a"], False)]


async def test_after_commit_callback_never_runs_after_a_rollback(notes: Database) -> None:
    ran: list[str] = []

    async def call() -> None:
        ran.append("x")

    async with doomed(notes):
        await notes.after_commit(call)
    async with notes.transaction():
        await write(notes, "another")
    assert ran == []


async def test_after_commit_callback_never_runs_after_a_failed_commit(notes: Database, outsider: Outsider) -> None:
    await notes.execute("ALTER TABLE note ADD COLUMN of text REFERENCES note DEFERRABLE INITIALLY DEFERRED")
    ran: list[str] = []

    async def call() -> None:
        ran.append("x")

    async def work() -> None:
        async with notes.transaction():
            await notes.execute("INSERT INTO note VALUES ('a', 'nobody')")
            await notes.after_commit(call)

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await work()
    assert ran == []
    assert await seen(outsider) == []
    assert not is_inside(notes)


async def test_after_commit_callback_that_fails_stops_no_other(notes: Database, outsider: Outsider) -> None:
    ran: list[str] = []

    async def fail() -> None:
        raise Oops

    async def call() -> None:
        ran.append("x")

    async with notes.transaction():
        await write(notes, "a")
        await notes.after_commit(fail)
        await notes.after_commit(call)
    assert ran == ["x"]
    assert await seen(outsider) == ["a"]


async def test_connection_has_our_schema_utc_and_a_statement_timeout(database_url: str) -> None:
    db = Database(DatabaseConfig(url=Secret(database_url), schema="till", statement_timeout=0.3))
    await db.start()
    shown = [await db.fetchval(f"SHOW {name}") for name in ("search_path", "timezone", "statement_timeout")]
    assert shown == ["till", "UTC", "300ms"]
    with pytest.raises(asyncpg.QueryCanceledError):
        await db.execute("SELECT pg_sleep(2)")
    await db.stop()


async def test_database_without_a_url_or_a_start_raises(database_url: str) -> None:
    with pytest.raises(ValueError, match=r"database\.url is not set"):
        Database(DatabaseConfig())
    db = Database(DatabaseConfig(url=Secret(database_url)))
    assert not db.is_running
    with pytest.raises(RuntimeError, match="has not been started"):
        await db.fetchval("SELECT 1")


async def test_database_stop_with_an_endless_query_returns_in_time(database_url: str) -> None:
    db = Database(DatabaseConfig(url=Secret(database_url)))
    await db.start()
    endless = asyncio.create_task(db.execute("SELECT pg_sleep(600)"))
    await eventually(
        lambda: db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"), patience=60
    )
    async with asyncio.timeout(60):
        await db.stop(patience=0.2)
    assert not db.is_running
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await endless
