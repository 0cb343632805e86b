"""One pool, one transaction per task, and callbacks after commit."""

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
    asyncpg.InternalClientError,
)
"""Postgres is unreachable, restarting or failing over."""

OVERLOADED: tuple[type[BaseException], ...] = (
    asyncpg.DeadlockDetectedError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.SerializationError,
    ConcurrentUpdate,
)
"""Postgres is busy or a race was lost. Nothing was committed, and a retry may succeed."""


_may_use_reserve: ContextVar[bool] = ContextVar("mpesa_gateway_reserve", default=False)


@contextmanager
def reserve() -> Generator[None]:
    token = _may_use_reserve.set(True)
    try:
        yield
    finally:
        _may_use_reserve.reset(token)


class DatabaseNotNamed(RuntimeError):
    """A Piccolo query ran outside ``Database.run`` and transactions."""


class ExternalCallInTransaction(RuntimeError):
    """A function that calls M-Pesa was called inside a transaction."""


class TransactionRolledBack(RuntimeError):
    """Postgres rolled back at COMMIT because an error was caught in the block."""


_ENDED_INSIDE = "the transaction was ended by a statement inside its block: leave the block, or raise, to end it"
_SWALLOWED = (
    "Postgres rolled this transaction back, because a statement in it failed and the error was caught inside the "
    "block: nothing was committed. Let the error leave the block, or put the statement inside `db.savepoint()`"
)


if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[Row]
else:
    _Connection = asyncpg.Connection


class CheckedConnection(_Connection):
    """COMMIT of a failed transaction raises.

    Postgres answers it with the tag ROLLBACK, which asyncpg ignores.
    """

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's signature
        is_commit = query in _COMMITS
        if is_commit and not self.is_in_transaction():
            raise TransactionRolledBack(_ENDED_INSIDE)
        tag: str = await super().execute(query, *args, timeout=timeout)
        if is_commit and tag == "ROLLBACK":
            raise TransactionRolledBack(_SWALLOWED)
        return tag


_COMMITS = frozenset({"COMMIT;", "COMMIT", "END", "END;"})


class _Engine(PostgresEngine):
    def __init__(
        self,
        config: dict[str, Any],
        acquire: "Callable[[], AbstractAsyncContextManager[PoolConnectionProxy[Row]]]",
    ) -> None:
        super().__init__(config=config, extensions=())
        self._acquire = acquire

    async def _run_in_pool(self, query: str, args: Sequence[Any] | None = None) -> list[Row]:
        async with self._acquire() as connection:
            rows: list[Row] = await connection.fetch(query, *(args or ()))
            return rows

    async def _run_in_new_connection(self, query: str, args: Sequence[Any] | None = None) -> list[Row]:
        return await self._run_in_pool(query, args)

    async def check_version(self) -> None:
        pass

    async def prep_database(self) -> None:
        pass


class PoolerDetected(ConfigError):
    """``database.url`` leads to a pooler, and ``database.direct_url`` is not set."""


class SearchPathLost(ConfigError):
    """The search path is not the gateway's schema."""


class SettingLost(SearchPathLost):
    """A setting behind a pooler breaks our statements."""


async def keep_session_state(_: "asyncpg.Connection[Row]") -> None:
    """Skip asyncpg's reset, a round trip per query.

    Settings and locks end with their transaction.
    """


_SAVEPOINT = "mpesa_gateway"

_CLOSE_TIMEOUT = 5.0

_SETTINGS = {
    "timezone": "UTC",
    "application_name": "mpesa-gateway",
    "DateStyle": "ISO, MDY",
    "standard_conforming_strings": "on",
}
"""PgBouncer applies these."""

_PINNED = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "array_nulls": "on",
    "transform_null_equals": "off",
}
"""PgBouncer does not apply these: ``check_connection`` checks ``_NEEDED``."""

_NEEDED = ("default_transaction_isolation", "transform_null_equals")

_ISOLATION: Literal["read_committed"] = "read_committed"

# raw SQL: catalog - backend, schema and settings of a connection.
_CONNECTION_STATE = """
SELECT pg_backend_pid() AS pid, current_setting('search_path') AS path, current_user AS role,
    current_database() AS name,
    (SELECT array_agg(name || '=' || current_setting(name)) FROM unnest($1::text[]) AS name) AS needed
"""


async def check_connection(
    connection: "asyncpg.Connection[Row] | PoolConnectionProxy[Row]", schema: str, *, may_be_pooled: bool
) -> None:
    """Raise PoolerDetected, SearchPathLost or SettingLost.

    Behind a pooler, the protocol's process id differs from the backend's.
    """
    row = await connection.fetchrow(_CONNECTION_STATE, list(_NEEDED))
    if row is None:
        return
    if not may_be_pooled and row["pid"] != connection.get_server_pid():
        raise PoolerDetected(_POOLER)
    if row["path"].strip('"') != schema:
        raise SearchPathLost(
            f"behind the pooler of `database.url` the search path is {row['path']} instead of {schema}: run "
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
    "`database.url` leads to a pooler, such as PgBouncer: set `database.direct_url` to an address past it, and let "
    "`database.url` lead through it (docs/scaling.md)"
)


@contextmanager
def startup_settings_refused() -> Generator[None]:
    try:
        yield
    except asyncpg.ProtocolViolationError as refusal:
        if "startup parameter" in str(refusal):
            raise PoolerDetected(_POOLER) from None
        raise


def connection_options(url: Secret, config: DatabaseConfig) -> dict[str, Any]:
    """Bypass any pooler."""
    # A dead process must not keep its locks.
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
    """Sends BEGIN before the first statement that cannot be deferred."""

    def __init__(
        self, acquire: "Callable[[], AbstractAsyncContextManager[PoolConnectionProxy[Row]]]", stack: AsyncExitStack
    ) -> None:
        self._acquire = acquire
        self._stack = stack
        self.connection: PoolConnectionProxy[Row] | None = None
        self.writes: list[DeferredWrite] = []
        self.after_commit: list[AfterCommit] = []
        self.failure: BaseException | None = None
        """Raised by later statements until a savepoint before it has rolled back."""
        self.is_over = False
        self._is_flushing = False

    async def begin(self) -> "PoolConnectionProxy[Row]":
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
        """Send all deferred writes once there are ``MOST``."""
        self.check()
        if self._is_flushing:
            raise RuntimeError("the callback of a write cannot defer another: the transaction may be over by then")
        self.writes.append(write)
        if len(self.writes) >= MOST:
            await self.begin()

    async def flush(self) -> None:
        """Deferred writes alone need no BEGIN and COMMIT."""
        self.check()
        if not self.writes:
            return
        writes, self.writes = self.writes, []
        self._is_flushing = True
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
            self._is_flushing = False

    def check(self) -> None:
        if self.is_over:
            raise RuntimeError("the transaction in which this task was started is over: start none inside")
        if self.failure is not None:
            raise self.failure


class _FirstUse:
    def __init__(self, current: _OpenTransaction) -> None:
        self._current = current

    async def fetch(self, sql: str, *args: Any) -> Any:
        return await (await self._current.begin()).fetch(sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        return await (await self._current.begin()).execute(sql, *args)


_named: ContextVar["Database | None"] = ContextVar("mpesa_gateway_database", default=None)


class _NamedEngine:
    engine_type = "postgres"

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
    """One pool whose search path is the gateway's schema.

    Over 20 methods: all share the pool and the open transaction of the task.
    """

    def __init__(self, config: DatabaseConfig) -> None:
        if config.url is None:
            raise ValueError("database.url is not set")
        self.columns = StarExpansion()
        self.schema = config.schema
        self.is_pooled = config.direct_url is not None
        self._direct = connection_options(config.direct_url or config.url, config)
        # Poolers drop other settings, and prepared statements do not survive a change of connection.
        pooled = {"dsn": read_dsn(config.url).text, "server_settings": _SETTINGS, "statement_cache_size": 0}
        self.engine = _Engine(self._direct | (pooled if self.is_pooled else {}), self._acquire)
        self._pool_size = (config.pool_min, config.pool_max)
        self._ordinary = asyncio.Semaphore(config.pool_max - min(config.reserve, config.pool_max // 2))
        self._open: ContextVar[_OpenTransaction | None] = ContextVar("mpesa_gateway_transaction", default=None)
        self.tracer: Tracer = UNTRACED

    @property
    def is_running(self) -> bool:
        return self.engine.pool is not None

    @property
    def in_transaction(self) -> bool:
        return self._open.get() is not None

    @property
    def is_deferring(self) -> bool:
        """True in a transaction that has sent no statement yet: all its writes are deferred."""
        current = self._open.get()
        return current is not None and current.connection is None

    def refuse_transaction(self, what: str) -> None:
        if self.in_transaction:
            raise ExternalCallInTransaction(
                f"{what} writes its intent, commits, and only then calls M-Pesa: inside your transaction that commit "
                "would come too late. Call it after commit: by `db.after_commit(…)`, or from a subscriber made by `on`"
            )

    async def start(self) -> None:
        """Raise PoolerDetected, SearchPathLost and errors of asyncpg."""
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
        """Return a connection past any pooler. The caller closes it.

        Raises PoolerDetected and errors of asyncpg.
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
        """Yield a connection for locks and settings that outlive a transaction."""
        if not self.is_pooled:
            async with self.connection() as pooled:
                yield pooled
            return
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close(timeout=_CLOSE_TIMEOUT)

    async def _set_up(self, connection: "asyncpg.Connection[Row] | PoolConnectionProxy[Row]") -> None:
        await read_ids(connection)
        await check_connection(connection, self.schema, may_be_pooled=self.is_pooled)

    async def stop(self, patience: float = 10.0) -> None:
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
        for table in tables:
            self.columns.learn(table)
            # Piccolo cannot bind a table at run time otherwise.
            table._meta.db = cast("Any", _NAMED_ENGINE)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    async def run(self, query: Any) -> Any:
        token = _named.set(self)
        try:
            return await query
        finally:
            _named.reset(token)

    @asynccontextmanager
    async def connection(self) -> "AsyncGenerator[PoolConnectionProxy[Row]]":
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
        async with self.connection() as connection:
            rows: list[Row] = await connection.fetch(self.columns.spell_out(sql), *args)
            return rows

    async def fetch_planned(self, sql: str, *args: Any) -> list[Row]:
        """Like ``fetch``, planned for these values, with a second round trip.

        A generic plan suits either rare or common values of a list.
        """
        async with self.connection() as connection:
            statement = await connection.prepare(self.columns.spell_out(sql), name="")
            rows: list[Row] = await statement.fetch(*args)
            return rows

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        async with self.connection() as connection:
            row: Row | None = await connection.fetchrow(self.columns.spell_out(sql), *args)
            return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        async with self.connection() as connection:
            tag: str = await connection.execute(sql, *args)
            return tag

    async def executemany(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        async with self.connection() as connection:
            await connection.executemany(sql, rows)

    async def read_unlocked(self, sql: str, *args: Any) -> list[Row]:
        """Return rows without locks and, in a transaction of deferred writes, without BEGIN.

        A deferred write that depends on them sets ``expects``.
        """
        current = self._open.get()
        if current is None or current.connection is not None:
            return await self.fetch(sql, *args)
        async with self._acquire() as connection:
            rows: list[Row] = await connection.fetch(self.columns.spell_out(sql), *args)
        return rows

    async def defer(self, write: DeferredWrite) -> None:
        """Defer a write to the next other statement or the end of the transaction.

        Its errors are raised then. Without a transaction, write now.
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

        Never start a task inside: it would share the connection. Raises TransactionRolledBack if the block caught a
        database error.
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
                # Piccolo's own context manager leaks the connection when ROLLBACK fails.
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
            except Exception as problem:  # noqa: BLE001 - already committed
                # Committed: a sweeper finds the work.
                log.error("after_commit_failed", exception=trace(problem))

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """Roll back only this block, with its deferred writes, if it raises."""
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
        """Call ``callback`` after commit, or now without a transaction."""
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
