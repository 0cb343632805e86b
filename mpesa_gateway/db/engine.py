"""The way to Postgres: one pool, one ambient transaction, and what has to wait until it has committed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from piccolo.engine.postgres import PostgresEngine, PostgresTransaction
from piccolo.table import Table

from mpesa_gateway.config import ConfigRefused, DatabaseConfig
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.db.columns import Columns
from mpesa_gateway.db.writes import MOST, ChangedMeanwhile, Write, write_down
from mpesa_gateway.dsn import read_dsn
from mpesa_gateway.logs import trace
from mpesa_gateway.secret import Secret
from mpesa_gateway.tracing import POSTGRES, UNTRACED, Tracer

log = structlog.get_logger(__name__)

Row: TypeAlias = asyncpg.Record
Found: TypeAlias = Row | Mapping[str, Any]
"""A row, as asyncpg or as Piccolo returns it."""

AfterCommit = Callable[[], Awaitable[None]]
T = TypeVar("T")

UNREACHABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    # What a query meets on a connection that the server has just said farewell to.
    asyncpg.InternalClientError,
)
"""What asyncpg raises when Postgres is away, restarting or failing over, as opposed to refusing a statement."""

OVERBURDENED: tuple[type[BaseException], ...] = (
    asyncpg.DeadlockDetectedError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.SerializationError,
    ChangedMeanwhile,
)
"""What is raised when there is no room or no time at this moment, or somebody was faster: nothing was done, and trying
again may help."""


_may_use_reserve: ContextVar[bool] = ContextVar("mpesa_gateway_reserve", default=False)


@contextmanager
def reserve() -> Generator[None]:
    """A block that may use the connections which others leave free: what must go on however busy all else is."""
    token = _may_use_reserve.set(True)
    try:
        yield
    finally:
        _may_use_reserve.reset(token)


class DatabaseNotNamed(RuntimeError):
    """A query of Piccolo's runs outside of ``Database.run`` and of transactions."""


class CalledInTransaction(RuntimeError):
    """Something that must be committed before it goes on was called inside a transaction."""


class RolledBack(RuntimeError):
    """Postgres rolled a transaction back that was to be committed: an error in it was caught and not raised again."""


_ENDED_INSIDE = "the transaction was ended by a statement inside its block: leave the block, or raise, to end it"
_SWALLOWED = (
    "Postgres rolled this transaction back, because a statement in it failed and the error was caught inside the "
    "block: nothing was committed. Let the error leave the block, or put the statement inside `db.savepoint()`"
)


if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[Row]
else:
    # Generic in its stubs only.
    _Connection = asyncpg.Connection


class CheckedConnection(_Connection):
    """A connection on which a COMMIT that commits nothing raises.

    Postgres answers COMMIT of a failed transaction with the command tag ROLLBACK, and asyncpg ignores the tag.
    """

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's signature
        """Run a statement; returns its command tag.

        Raises RolledBack for a COMMIT that rolled back, and for one that finds no transaction open.
        """
        is_commit = query in _COMMITS
        if is_commit and not self.is_in_transaction():
            raise RolledBack(_ENDED_INSIDE)
        tag: str = await super().execute(query, *args, timeout=timeout)
        if is_commit and tag == "ROLLBACK":
            raise RolledBack(_SWALLOWED)
        return tag


_COMMITS = frozenset({"COMMIT;", "COMMIT", "END", "END;"})
"""How asyncpg, and code that writes it by hand, commits."""


class _Engine(PostgresEngine):
    """Piccolo's engine, without the connection that it opens while it is being made.

    Its queries take connections as all others do: those of the reserve are taken only inside ``reserve``.
    """

    def __init__(
        self,
        config: dict[str, Any],
        acquire: "Callable[[], AbstractAsyncContextManager[PoolConnectionProxy[Row]]]",
    ) -> None:
        """``acquire`` lends a connection for one query outside of transactions."""
        super().__init__(config=config, extensions=())
        self._acquire = acquire

    async def _run_in_pool(self, query: str, args: Sequence[Any] | None = None) -> list[Row]:
        """Run a query of Piccolo's outside of transactions; returns its rows."""
        async with self._acquire() as connection:
            rows: list[Row] = await connection.fetch(query, *(args or ()))
            return rows

    async def _run_in_new_connection(self, query: str, args: Sequence[Any] | None = None) -> list[Row]:
        """Raise what every other query meets without a pool: Piccolo would open a connection of its own."""
        return await self._run_in_pool(query, args)

    async def check_version(self) -> None:
        """Nothing: the migrations refuse a Postgres that is too old, in a sentence of its own."""

    async def prep_database(self) -> None:
        """Nothing: the gateway needs no extensions."""


class PoolerInBetween(ConfigRefused):
    """The address of Postgres leads to a pooler that nobody told us of."""


class SearchPathLost(ConfigRefused):
    """A connection would look for our tables somewhere else than in our schema."""


class SettingLost(SearchPathLost):
    """A connection behind a pooler has a setting that our statements are not written for."""


async def leave_as_it_is(_: "asyncpg.Connection[Row]") -> None:
    """Nothing: a connection goes back to the pool with no settings, locks or listeners of its own.

    All that we set and lock ends with its transaction, and an open transaction is rolled back without this. asyncpg's
    own way is to ask Postgres to reset everything, each time: a second trip after every query.
    """


_SAVEPOINT = "mpesa_gateway"
"""The name of each savepoint. In Postgres, an inner one of the same name hides the outer one until it is released."""

_FAREWELL = 5.0
"""Seconds that closing a connection of one's own may take."""

_SETTINGS = {
    "timezone": "UTC",
    "application_name": "mpesa-gateway",
    "DateStyle": "ISO, MDY",
    "standard_conforming_strings": "on",
}
"""What we set while we connect; PgBouncer, too, gives these to whatever connection it lends us."""

_PINNED = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "array_nulls": "on",
    "transform_null_equals": "off",
}
"""What a role, a database or the server may have set otherwise, and our statements rely on: set while we connect.

Behind PgBouncer they are what Postgres says: `look_at` refuses those of ``_NEEDED`` that are not so.
"""

_NEEDED = ("default_transaction_isolation", "transform_null_equals")

_ISOLATION: Literal["read_committed"] = "read_committed"
"""Of our transactions, as asyncpg calls it: BEGIN says so, whatever the default is."""

# raw SQL: catalog - where a connection leads.
_WHERE = """
SELECT pg_backend_pid() AS pid, current_setting('search_path') AS path, current_user AS role,
    current_database() AS name,
    (SELECT array_agg(name || '=' || current_setting(name)) FROM unnest($1::text[]) AS name) AS needed
"""


async def look_at(
    connection: "asyncpg.Connection[Row] | PoolConnectionProxy[Row]", schema: str, *, may_be_pooled: bool
) -> None:
    """Does a new connection lead where we think? Raises PoolerInBetween or SearchPathLost.

    A pooler makes up the number of the process that it says to talk to.
    """
    row = await connection.fetchrow(_WHERE, list(_NEEDED))
    if row is None:
        return
    if not may_be_pooled and row["pid"] != connection.get_server_pid():
        raise PoolerInBetween(_POOLER)
    if row["path"].strip('"') != schema:
        raise SearchPathLost(
            f"behind the pooler of `database.url` tables are looked for in {row['path']}, and not in {schema}: run "
            f'`ALTER ROLE "{row["role"]}" IN DATABASE "{row["name"]}" SET search_path = {schema}` in Postgres and '
            "`RECONNECT` in PgBouncer (docs/scaling.md)"
        )
    for name, _, value in (needed.partition("=") for needed in row["needed"]):
        wanted = _PINNED[name]
        if value != wanted:
            raise SettingLost(
                f"behind the pooler of `database.url` {name} is '{value}', and we rely on '{wanted}': run "
                f'`ALTER ROLE "{row["role"]}" IN DATABASE "{row["name"]}" SET {name} = \'{wanted}\'` in Postgres '
                "and `RECONNECT` in PgBouncer (docs/scaling.md)"
            )


_POOLER = (
    "between us and Postgres there is a pooler, such as PgBouncer: let `database.direct_url` lead past it, and "
    "`database.url` through it (docs/scaling.md)"
)


@contextmanager
def startup_settings_refused() -> Generator[None]:
    """Raises PoolerInBetween where PgBouncer says no to the settings that Postgres takes from whoever connects."""
    try:
        yield
    except asyncpg.ProtocolViolationError as refusal:
        if "startup parameter" in str(refusal):
            raise PoolerInBetween(_POOLER) from None
        raise


def way_to(url: Secret, config: DatabaseConfig) -> dict[str, Any]:
    """How to connect to Postgres itself, as asyncpg wants it told."""
    # Of a process that dies with a transaction open, the locks must not stay for ever.
    timeout = str(int(config.statement_timeout * 1000))
    dsn = read_dsn(url)
    return {
        "dsn": dsn.text,
        "timeout": dsn.connect_timeout or config.connect_timeout,
        "server_settings": _SETTINGS
        | _PINNED
        | {
            "search_path": config.schema,
            "statement_timeout": timeout,
            "idle_in_transaction_session_timeout": timeout,
        },
    }


class _Open:
    """The transaction that this task is in. It begins with the first statement that cannot wait for its end."""

    def __init__(
        self, acquire: "Callable[[], AbstractAsyncContextManager[PoolConnectionProxy[Row]]]", stack: AsyncExitStack
    ) -> None:
        """``stack`` is left at the end of the transaction, and what is entered on it undone or committed."""
        self._acquire = acquire
        self._stack = stack
        self.connection: PoolConnectionProxy[Row] | None = None
        self.writes: list[Write] = []
        self.after_commit: list[AfterCommit] = []
        self.failure: BaseException | None = None
        """Why not all of it can be done any more: raised by whatever comes next, until a savepoint has undone it."""
        self.is_over = False
        self._is_telling = False

    async def begin(self) -> "PoolConnectionProxy[Row]":
        """The connection, with everything on it that was put off so far."""
        self.check()
        try:
            if self.connection is None:
                connection = await self._stack.enter_async_context(self._acquire())
                await self._stack.enter_async_context(connection.transaction(isolation=_ISOLATION))
                self.connection = connection
        except BaseException as problem:
            self.failure = problem
            raise
        await self.flush()
        return self.connection

    async def put_off(self, write: Write) -> None:
        """Leave a write for later; what is too much for one statement is written now."""
        self.check()
        if self._is_telling:
            raise RuntimeError("who is told of a write cannot put off another: the transaction may be over by then")
        self.writes.append(write)
        if len(self.writes) >= MOST:
            await self.begin()

    async def flush(self) -> None:
        """Write what was put off. Where nothing else was asked for, that is all, and needs no BEGIN and COMMIT."""
        self.check()
        if not self.writes:
            return
        writes, self.writes = self.writes, []
        self._is_telling = True
        try:
            if self.connection is not None:
                await write_down(self.connection, writes)
            else:
                async with self._acquire() as connection:
                    await write_down(connection, writes)
        except BaseException as problem:
            self.failure = problem
            raise
        finally:
            self._is_telling = False

    def check(self) -> None:
        """Raises what went wrong before, and RuntimeError once the transaction is over."""
        if self.is_over:
            raise RuntimeError("the transaction in which this task was started is over: start none inside")
        if self.failure is not None:
            raise self.failure


class _FirstUse:
    """What Piccolo takes for the connection of a transaction, which may begin with this very query."""

    def __init__(self, current: _Open) -> None:
        self._current = current

    async def fetch(self, sql: str, *args: Any) -> Any:
        """Run a query of Piccolo's."""
        return await (await self._current.begin()).fetch(sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        """Run a statement of Piccolo's, such as its savepoints."""
        return await (await self._current.begin()).execute(sql, *args)


_named: ContextVar["Database | None"] = ContextVar("mpesa_gateway_database", default=None)
"""The database that ``Database.run`` or a transaction of this task has named for Piccolo's queries."""


class _NamedEngine:
    """The engine of every bound table: that of the database which the task has named."""

    engine_type = "postgres"
    """Piccolo reads it while it builds a query, before the query runs."""

    def __getattr__(self, name: str) -> Any:
        database = _named.get()
        if database is None:
            raise DatabaseNotNamed(
                "this query of Piccolo's names no database: run it by `await gateway.db.run(query)`, or inside "
                "`async with gateway.db.transaction():`"
            )
        return getattr(database.engine, name)


_NAMED_ENGINE = _NamedEngine()


class Database:
    """One pool of connections whose search path is the gateway's own schema.

    Over 20 methods: all ways to a connection share the pool and the open transaction of the task.
    """

    def __init__(self, config: DatabaseConfig) -> None:
        if config.url is None:
            raise ValueError("database.url is not set")
        self.columns = Columns()
        self.schema = config.schema
        self.is_pooled = config.direct_url is not None
        self._direct = way_to(config.direct_url or config.url, config)
        # A pooler takes no other settings along; and what one transaction has prepared, the next one, on another
        # connection behind it, would not find.
        pooled = {"dsn": read_dsn(config.url).text, "server_settings": _SETTINGS, "statement_cache_size": 0}
        self.engine = _Engine(self._direct | (pooled if self.is_pooled else {}), self._acquire)
        self._pool_size = (config.pool_min, config.pool_max)
        # At most half, so that a small pool is not all reserve.
        self._ordinary = asyncio.Semaphore(config.pool_max - min(config.reserve, config.pool_max // 2))
        self._open: ContextVar[_Open | None] = ContextVar("mpesa_gateway_transaction", default=None)
        self.tracer: Tracer = UNTRACED

    @property
    def is_running(self) -> bool:
        """Whether the pool is open."""
        return self.engine.pool is not None

    @property
    def in_transaction(self) -> bool:
        """Whether this task has a transaction open."""
        return self._open.get() is not None

    def refuse_transaction(self, what: str) -> None:
        """Raises CalledInTransaction when this task has a transaction open: ``what`` commits before it calls others."""
        if self.in_transaction:
            raise CalledInTransaction(
                f"{what} writes its intent, commits, and only then calls M-Pesa: inside your transaction that commit "
                "would come too late. Call it after commit: by `db.after_commit(…)`, or from a subscriber made by `on`"
            )

    async def start(self) -> None:
        """Open the pool.

        Raises what asyncpg raises when Postgres cannot be reached, and PoolerInBetween and SearchPathLost where it is
        reached in a way that we could not rely on.
        """
        least, most = self._pool_size
        with startup_settings_refused():
            await self.engine.start_connection_pool(
                min_size=least,
                max_size=most,
                max_inactive_connection_lifetime=300.0,
                init=self._set_up,
                reset=leave_as_it_is,
                connection_class=CheckedConnection,
            )

    async def connect(self) -> "asyncpg.Connection[Row]":
        """A connection outside the pool and past any pooler, for whoever keeps one.

        Raises what asyncpg raises without Postgres, and PoolerInBetween.
        """
        with startup_settings_refused():
            connection: asyncpg.Connection[Row] = await asyncpg.connect(
                **self._direct, connection_class=CheckedConnection
            )
        try:
            await read_ids(connection)
            await look_at(connection, self.schema, may_be_pooled=False)
        except BaseException:
            connection.terminate()
            raise
        return connection

    @asynccontextmanager
    async def session(self) -> "AsyncGenerator[PoolConnectionProxy[Row] | asyncpg.Connection[Row]]":
        """A connection that is the same from one transaction to the next, for locks and settings that outlive them."""
        if not self.is_pooled:
            async with self.connection() as pooled:
                yield pooled
            return
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close(timeout=_FAREWELL)

    async def _set_up(self, connection: "asyncpg.Connection[Row] | PoolConnectionProxy[Row]") -> None:
        """Once for each connection of the pool: does it lead where we think, and how do identifiers travel?"""
        await read_ids(connection)
        await look_at(connection, self.schema, may_be_pooled=self.is_pooled)

    async def stop(self, patience: float = 10.0) -> None:
        """Close the pool; a query that still runs gets ``patience`` seconds to end."""
        pool = self.engine.pool
        try:
            if pool is not None:
                async with asyncio.timeout(patience):
                    await self.engine.close_connection_pool()
        except TimeoutError:
            log.warning("connections_cut_off")
            cast("asyncpg.Pool[Row]", pool).terminate()
            self.engine.pool = None

    def bind(self, tables: Iterable[type[Table]]) -> None:
        """Let ``run`` and transactions run the queries of these tables."""
        for table in tables:
            self.columns.learn(table)
            # Piccolo has no other way to bind a table at run time.
            table._meta.db = cast("Any", _NAMED_ENGINE)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    async def run(self, query: Any) -> Any:
        """Run a query of Piccolo's in the open transaction, if there is one; returns what the query returns.

        ``Any``: Piccolo leaves the types of most queries open.
        """
        token = _named.set(self)
        try:
            return await query
        finally:
            _named.reset(token)

    @asynccontextmanager
    async def connection(self) -> "AsyncGenerator[PoolConnectionProxy[Row]]":
        """The open transaction's connection, or one from the pool for the length of the block."""
        current = self._open.get()
        if current is not None:
            yield await current.begin()
            return
        async with self._acquire() as connection:
            yield connection

    @asynccontextmanager
    async def _acquire(self) -> "AsyncGenerator[PoolConnectionProxy[Row]]":
        """A connection from the pool; one of the reserve only inside ``reserve``."""
        if _may_use_reserve.get():
            async with self._pool.acquire() as connection:
                yield connection
            return
        async with self._ordinary, self._pool.acquire() as connection:
            yield connection

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        """Return all rows of a query. ``*`` means the columns of a bound table that this release knows."""
        async with self.connection() as connection:
            rows: list[Row] = await connection.fetch(self.columns.spell_out(sql), *args)
            return rows

    async def fetch_planned(self, sql: str, *args: Any) -> list[Row]:
        """Like ``fetch``, with a plan for exactly these values, at the price of a second round trip.

        After five executions Postgres may keep one plan for all values, which is the wrong one for a list: a rare value
        wants an index on it, a common one the newest rows.
        """
        async with self.connection() as connection:
            # A statement without a name is planned for each execution.
            statement = await connection.prepare(self.columns.spell_out(sql), name="")
            rows: list[Row] = await statement.fetch(*args)
            return rows

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """Return the first row of a query, or None."""
        async with self.connection() as connection:
            row: Row | None = await connection.fetchrow(self.columns.spell_out(sql), *args)
            return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """Return the first value of the first row, or None."""
        async with self.connection() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement; gives Postgres' command tag, such as ``UPDATE 1``."""
        async with self.connection() as connection:
            tag: str = await connection.execute(sql, *args)
            return tag

    async def executemany(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run one statement for many rows, in one go."""
        async with self.connection() as connection:
            await connection.executemany(sql, rows)

    async def look(self, sql: str, *args: Any) -> list[Row]:
        """All rows of a query as they are now, though a transaction is open that has not begun yet.

        Nothing is locked: whoever writes about them has to say what it expects, see ``put_off``.
        """
        current = self._open.get()
        if current is None or current.connection is not None:
            return await self.fetch(sql, *args)
        async with self._acquire() as connection:
            rows: list[Row] = await connection.fetch(self.columns.spell_out(sql), *args)
        return rows

    async def put_off(self, write: Write) -> None:
        """Write at the end of the open transaction, or before its next statement; at once when none is open.

        What is put off goes to Postgres in one trip, and a transaction of nothing else is that trip. Raises then, and
        not here, ChangedMeanwhile and what asyncpg raises.
        """
        current = self._open.get()
        if current is not None:
            await current.put_off(write)
            return
        async with self.connection() as connection:
            await write_down(connection, [write])

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """A transaction that commits at the end of the block, or rolls back if it raises; nested ones join it.

        Piccolo's queries in the block take part. Never start a task inside: it would share the connection. Raises
        RolledBack where Postgres rolled back instead of committing, because the block caught the error of a failed
        statement; callbacks of ``after_commit`` do not run then. An exception that leaves a nested block fails the
        outer one as well, whoever catches it: only ``savepoint`` undoes a part.
        """
        token = _named.set(self)
        try:
            async with self._transaction():
                yield
        finally:
            _named.reset(token)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[None]:
        outer = self._open.get()
        if outer is not None:
            try:
                yield
            except BaseException as problem:
                outer.failure = outer.failure or problem
                raise
            return
        with self.tracer.step("postgres transaction", POSTGRES, "client"):
            async with AsyncExitStack() as stack:
                current = _Open(self._acquire, stack)
                token = self._open.set(current)
                # Piccolo finds the connection through this; we begin and end the transaction ourselves because its own
                # context manager keeps the connection and the context variable for ever when ROLLBACK itself fails.
                shared = PostgresTransaction(self.engine)
                shared.connection = cast("Any", _FirstUse(current))
                piccolo_token = self.engine.current_transaction.set(shared)  # pyright: ignore[reportArgumentType]
                try:
                    yield
                    await current.flush()
                finally:
                    current.is_over = True
                    self.engine.current_transaction.reset(piccolo_token)
                    self._open.reset(token)
        for callback in current.after_commit:
            try:
                await callback()
            except Exception as problem:  # noqa: BLE001 - see below
                # The commit stands. What was to follow it is owed by Postgres and found by a sweeper.
                log.error("after_commit_failed", exception=trace(problem))

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """Inside a transaction: a block whose failure is undone alone, together with what it had put off."""
        current = self._current()
        connection = await current.begin()
        put_off = len(current.after_commit)
        await connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
            await current.flush()
            try:
                await connection.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            except asyncpg.InFailedSQLTransactionError:
                raise RolledBack(_SWALLOWED) from None
        except BaseException:
            del current.after_commit[put_off:]
            current.writes.clear()
            await connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}; RELEASE SAVEPOINT {_SAVEPOINT}")
            # Whatever it was, it is undone.
            current.failure = None
            raise

    async def after_commit(self, callback: AfterCommit) -> None:
        """Run ``callback`` once the open transaction has committed; at once when none is open."""
        current = self._open.get()
        if current is None:
            await callback()
        else:
            current.check()
            current.after_commit.append(callback)

    def _current(self) -> _Open:
        current = self._open.get()
        if current is None:
            raise RuntimeError("this needs a transaction: put it inside `async with db.transaction():`")
        return current

    @property
    def _pool(self) -> "asyncpg.Pool[Row]":
        pool = self.engine.pool
        if pool is None:
            raise RuntimeError("the database is not connected: the gateway has not been started")
        return pool
