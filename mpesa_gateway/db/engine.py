"""Access to Postgres: one pool, one transaction for each task, and callbacks that run after its commit."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from opentelemetry.trace import Tracer
from piccolo.engine.postgres import PostgresEngine, PostgresTransaction
from piccolo.table import Table

from mpesa_gateway.config import ConfigError, DatabaseConfig
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.db.deferred import MOST, ConcurrentUpdate, DeferredWrite, execute_writes
from mpesa_gateway.db.star_expansion import StarExpansion
from mpesa_gateway.dsn import read_dsn
from mpesa_gateway.logs import trace
from mpesa_gateway.secret import Secret
from mpesa_gateway.tracing import UNTRACED, postgres_span

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
    # Raised on a connection that the server has just closed.
    asyncpg.InternalClientError,
)
"""Errors of asyncpg when Postgres is unreachable, restarting or failing over, as opposed to refusing a statement."""

OVERBURDENED: tuple[type[BaseException], ...] = (
    asyncpg.DeadlockDetectedError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.SerializationError,
    ConcurrentUpdate,
)
"""Errors of a busy Postgres, of a time-out and of a lost race. Nothing was done, and a retry may succeed."""


_may_use_reserve: ContextVar[bool] = ContextVar("mpesa_gateway_reserve", default=False)


@contextmanager
def reserve() -> Generator[None]:
    """Allow the block to use the reserved connections, for work that must continue while all others are busy."""
    token = _may_use_reserve.set(True)
    try:
        yield
    finally:
        _may_use_reserve.reset(token)


class DatabaseNotNamed(RuntimeError):
    """A query of Piccolo's runs outside of ``Database.run`` and of transactions."""


class ExternalCallInTransaction(RuntimeError):
    """A function that commits before it calls M-Pesa was called inside a transaction."""


class TransactionRolledBack(RuntimeError):
    """Postgres rolled back a transaction instead of committing it: an error inside was caught and not raised again."""


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

        Raises TransactionRolledBack for a COMMIT that rolled back, and for one that finds no transaction open.
        """
        is_commit = query in _COMMITS
        if is_commit and not self.is_in_transaction():
            raise TransactionRolledBack(_ENDED_INSIDE)
        tag: str = await super().execute(query, *args, timeout=timeout)
        if is_commit and tag == "ROLLBACK":
            raise TransactionRolledBack(_SWALLOWED)
        return tag


_COMMITS = frozenset({"COMMIT;", "COMMIT", "END", "END;"})
"""The statements that commit, as asyncpg and as hand-written code spell them."""


class _Engine(PostgresEngine):
    """Piccolo's engine without the connection that its constructor opens.

    Its queries acquire connections like all others: the reserved ones only inside ``reserve``.
    """

    def __init__(
        self,
        config: dict[str, Any],
        acquire: "Callable[[], AbstractAsyncContextManager[PoolConnectionProxy[Row]]]",
    ) -> None:
        """``acquire`` returns a connection for one query outside of transactions."""
        super().__init__(config=config, extensions=())
        self._acquire = acquire

    async def _run_in_pool(self, query: str, args: Sequence[Any] | None = None) -> list[Row]:
        """Run a query of Piccolo's outside of transactions; returns its rows."""
        async with self._acquire() as connection:
            rows: list[Row] = await connection.fetch(query, *(args or ()))
            return rows

    async def _run_in_new_connection(self, query: str, args: Sequence[Any] | None = None) -> list[Row]:
        """Raise RuntimeError without a pool. Piccolo would open a connection of its own."""
        return await self._run_in_pool(query, args)

    async def check_version(self) -> None:
        """Do nothing: the migrations refuse a Postgres that is too old."""

    async def prep_database(self) -> None:
        """Do nothing: the gateway needs no extensions."""


class PoolerDetected(ConfigError):
    """`database.url` leads to a pooler, and `database.direct_url` is not set."""


class SearchPathLost(ConfigError):
    """A connection does not have our schema as its search path."""


class SettingLost(SearchPathLost):
    """A connection behind a pooler has a setting that our statements do not work with."""


async def keep_session_state(_: "asyncpg.Connection[Row]") -> None:
    """Return a connection to the pool without asyncpg's reset, which is a second round trip after every query.

    Our settings and locks end with their transaction, and the pool rolls back an open one by itself.
    """


_SAVEPOINT = "mpesa_gateway"
"""The name of each savepoint. An inner one of the same name hides the outer one until it is released."""

_FAREWELL = 5.0
"""Seconds that closing a connection outside the pool may take."""

_SETTINGS = {
    "timezone": "UTC",
    "application_name": "mpesa-gateway",
    "DateStyle": "ISO, MDY",
    "standard_conforming_strings": "on",
}
"""Settings of each connection. PgBouncer applies these as well."""

_PINNED = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "array_nulls": "on",
    "transform_null_equals": "off",
}
"""Settings that our statements rely on, whatever the defaults of the role, the database and the server are.

PgBouncer does not apply them: `look_at` refuses a connection behind it on which one of ``_NEEDED`` differs.
"""

_NEEDED = ("default_transaction_isolation", "transform_null_equals")

_ISOLATION: Literal["read_committed"] = "read_committed"
"""Isolation level of each transaction, stated in BEGIN."""

# raw SQL: catalog - where a connection leads.
_WHERE = """
SELECT pg_backend_pid() AS pid, current_setting('search_path') AS path, current_user AS role,
    current_database() AS name,
    (SELECT array_agg(name || '=' || current_setting(name)) FROM unnest($1::text[]) AS name) AS needed
"""


async def check_connection(
    connection: "asyncpg.Connection[Row] | PoolConnectionProxy[Row]", schema: str, *, may_be_pooled: bool
) -> None:
    """Check a new connection. Raises PoolerDetected, SearchPathLost or SettingLost.

    A pooler is recognized by its server process id, which differs from that of the backend.
    """
    row = await connection.fetchrow(_WHERE, list(_NEEDED))
    if row is None:
        return
    if not may_be_pooled and row["pid"] != connection.get_server_pid():
        raise PoolerDetected(_POOLER)
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
    """Raise PoolerDetected where PgBouncer refuses a startup parameter that Postgres accepts."""
    try:
        yield
    except asyncpg.ProtocolViolationError as refusal:
        if "startup parameter" in str(refusal):
            raise PoolerDetected(_POOLER) from None
        raise


def connection_options(url: Secret, config: DatabaseConfig) -> dict[str, Any]:
    """Return asyncpg's arguments for a connection to Postgres itself, without a pooler."""
    # A process that dies with an open transaction must not keep its locks.
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


class _OpenTransaction:
    """The transaction of a task. BEGIN is sent before the first statement that cannot be deferred."""

    def __init__(
        self, acquire: "Callable[[], AbstractAsyncContextManager[PoolConnectionProxy[Row]]]", stack: AsyncExitStack
    ) -> None:
        """``stack`` is closed at the end of the transaction, which commits or rolls back."""
        self._acquire = acquire
        self._stack = stack
        self.connection: PoolConnectionProxy[Row] | None = None
        self.writes: list[DeferredWrite] = []
        self.after_commit: list[AfterCommit] = []
        self.failure: BaseException | None = None
        """The first error: every later statement raises it, until a savepoint has rolled back to before it."""
        self.is_over = False
        self._is_telling = False

    async def begin(self) -> "PoolConnectionProxy[Row]":
        """Return the connection, after BEGIN and all deferred writes."""
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

    async def defer(self, write: DeferredWrite) -> None:
        """Defer a write. Once there are too many for one statement, all are written."""
        self.check()
        if self._is_telling:
            raise RuntimeError("the callback of a write cannot defer another: the transaction may be over by then")
        self.writes.append(write)
        if len(self.writes) >= MOST:
            await self.begin()

    async def flush(self) -> None:
        """Write what was deferred. A transaction of deferred writes only is one statement without BEGIN and COMMIT."""
        self.check()
        if not self.writes:
            return
        writes, self.writes = self.writes, []
        self._is_telling = True
        try:
            if self.connection is not None:
                await execute_writes(self.connection, writes)
            else:
                async with self._acquire() as connection:
                    await execute_writes(connection, writes)
        except BaseException as problem:
            self.failure = problem
            raise
        finally:
            self._is_telling = False

    def check(self) -> None:
        """Raise the first error of the transaction, and RuntimeError once it is over."""
        if self.is_over:
            raise RuntimeError("the transaction in which this task was started is over: start none inside")
        if self.failure is not None:
            raise self.failure


class _FirstUse:
    """The connection of a transaction as Piccolo sees it. Its first query may send BEGIN."""

    def __init__(self, current: _OpenTransaction) -> None:
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
        self.columns = StarExpansion()
        self.schema = config.schema
        self.is_pooled = config.direct_url is not None
        self._direct = connection_options(config.direct_url or config.url, config)
        # A pooler passes no other settings on, and the next transaction may run on another connection, where the
        # prepared statements of this one do not exist.
        pooled = {"dsn": read_dsn(config.url).text, "server_settings": _SETTINGS, "statement_cache_size": 0}
        self.engine = _Engine(self._direct | (pooled if self.is_pooled else {}), self._acquire)
        self._pool_size = (config.pool_min, config.pool_max)
        # At most half of the pool is reserved.
        self._ordinary = asyncio.Semaphore(config.pool_max - min(config.reserve, config.pool_max // 2))
        self._open: ContextVar[_OpenTransaction | None] = ContextVar("mpesa_gateway_transaction", default=None)
        self.tracer: Tracer = UNTRACED

    @property
    def is_running(self) -> bool:
        """Return True while the pool is open."""
        return self.engine.pool is not None

    @property
    def in_transaction(self) -> bool:
        """Return True if this task has an open transaction."""
        return self._open.get() is not None

    def refuse_transaction(self, what: str) -> None:
        """Raise ExternalCallInTransaction if this task has an open transaction; ``what`` names the caller."""
        if self.in_transaction:
            raise ExternalCallInTransaction(
                f"{what} writes its intent, commits, and only then calls M-Pesa: inside your transaction that commit "
                "would come too late. Call it after commit: by `db.after_commit(…)`, or from a subscriber made by `on`"
            )

    async def start(self) -> None:
        """Open the pool.

        Raises errors of asyncpg when Postgres cannot be reached, PoolerDetected and SearchPathLost.
        """
        least, most = self._pool_size
        with startup_settings_refused():
            await self.engine.start_connection_pool(
                min_size=least,
                max_size=most,
                max_inactive_connection_lifetime=300.0,
                init=self._set_up,
                reset=keep_session_state,
                connection_class=CheckedConnection,
            )

    async def connect(self) -> "asyncpg.Connection[Row]":
        """Return a connection outside the pool and past any pooler. The caller closes it.

        Raises errors of asyncpg when Postgres cannot be reached, and PoolerDetected.
        """
        with startup_settings_refused():
            connection: asyncpg.Connection[Row] = await asyncpg.connect(
                **self._direct, connection_class=CheckedConnection
            )
        try:
            await read_ids(connection)
            await check_connection(connection, self.schema, may_be_pooled=False)
        except BaseException:
            connection.terminate()
            raise
        return connection

    @asynccontextmanager
    async def session(self) -> "AsyncGenerator[PoolConnectionProxy[Row] | asyncpg.Connection[Row]]":
        """Yield one connection for several transactions, for locks and settings that outlive them."""
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
        await read_ids(connection)
        await check_connection(connection, self.schema, may_be_pooled=self.is_pooled)

    async def stop(self, patience: float = 10.0) -> None:
        """Close the pool; a query that still runs gets ``patience`` seconds to end."""
        pool = self.engine.pool
        try:
            if pool is not None:
                async with asyncio.timeout(patience):
                    await self.engine.close_connection_pool()
        except TimeoutError:
            log.warning("connections_closed")
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
        """Yield the connection of the open transaction, or one from the pool."""
        current = self._open.get()
        if current is not None:
            yield await current.begin()
            return
        async with self._acquire() as connection:
            yield connection

    @asynccontextmanager
    async def _acquire(self) -> "AsyncGenerator[PoolConnectionProxy[Row]]":
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
        """Run a statement. Returns the command tag of Postgres, such as ``UPDATE 1``."""
        async with self.connection() as connection:
            tag: str = await connection.execute(sql, *args)
            return tag

    async def executemany(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run one statement for many rows, in one batch."""
        async with self.connection() as connection:
            await connection.executemany(sql, rows)

    async def read_unlocked(self, sql: str, *args: Any) -> list[Row]:
        """Return all rows of a query. Does not send BEGIN for an open transaction of deferred writes.

        The rows are not locked: a deferred write about them states how many rows it expects, see ``put_off``.
        """
        current = self._open.get()
        if current is None or current.connection is not None:
            return await self.fetch(sql, *args)
        async with self._acquire() as connection:
            rows: list[Row] = await connection.fetch(self.columns.spell_out(sql), *args)
        return rows

    async def defer(self, write: DeferredWrite) -> None:
        """Defer a write to the end of the open transaction or its next statement. Without one, write at once.

        Deferred writes are one statement, which raises ConcurrentUpdate and errors of asyncpg when it runs, not here.
        """
        current = self._open.get()
        if current is not None:
            await current.defer(write)
            return
        async with self.connection() as connection:
            await execute_writes(connection, [write])

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """Commit at the end of the block, or roll back if it raises. A nested transaction joins the outer one.

        Piccolo's queries in the block take part. Never start a task inside: it would share the connection. Raises
        TransactionRolledBack, and runs no callbacks of ``after_commit``, where the block caught the error of a failed
        statement. An exception that leaves a nested block also fails the outer one: only ``savepoint`` undoes a part.
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
        with postgres_span(self.tracer, "transaction"):
            async with AsyncExitStack() as stack:
                current = _OpenTransaction(self._acquire, stack)
                token = self._open.set(current)
                # Piccolo finds the connection through this. Its own context manager would never release connection
                # and context variable when ROLLBACK fails.
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
                # The commit is done. A sweeper finds the work in Postgres.
                log.error("after_commit_failed", exception=trace(problem))

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """Roll back only this block of a transaction if it raises, its deferred writes included."""
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
                raise TransactionRolledBack(_SWALLOWED) from None
        except BaseException:
            del current.after_commit[put_off:]
            current.writes.clear()
            await connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}; RELEASE SAVEPOINT {_SAVEPOINT}")
            current.failure = None
            raise

    async def after_commit(self, callback: AfterCommit) -> None:
        """Run ``callback`` after the open transaction has committed; at once when none is open."""
        current = self._open.get()
        if current is None:
            await callback()
        else:
            current.check()
            current.after_commit.append(callback)

    def _current(self) -> _OpenTransaction:
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
