"""A streaming replica that answers lists and exports in the primary's place, and never with less than was committed.

Before each question the primary is asked how far its log has come, and the replica answers once it has replayed that
much. What was committed before the question, by whichever process, is therefore in the answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import structlog
from prometheus_client import Counter

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.asking import Asking, Connection, Question, Row
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.db.engine import (
    UNREACHABLE,
    Database,
    PoolerInBetween,
    SearchPathLost,
    leave_as_it_is,
    look_at,
    startup_settings_refused,
    way_to,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

REST = 5.0
"""Seconds that a replica is left alone after it could not be used."""

_CONNECTING = 1.0
"""Seconds that connecting may take: somebody waits, and the primary would answer at once."""

_OVERTIME = 5.0
"""Seconds after ``statement_timeout`` at which a replica that says nothing is taken for dead."""

_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016)
"""Seconds between two looks how far the replica has come; the last one repeats."""

# raw SQL: own connection - to the replica.
# raw SQL: catalog - how far each server has come.
_PRIMARY = """
SELECT pg_wal_lsn_diff(CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()
    ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint
"""
"""How far the primary's log has come. A transaction can be seen once its commit is flushed, or with
synchronous_commit off, written."""

_REPLICA = """
SELECT pg_is_in_recovery() AS is_standby, COALESCE(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, 0) AS at
"""

_WHO = """
SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()) AS database
FROM pg_control_system()
"""
"""What a standby has in common with its primary, and with no other Postgres."""

_LAG = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"

_FAULTS: tuple[type[BaseException], ...] = (
    *UNREACHABLE,
    asyncpg.TransactionRollbackError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InternalServerError,
    asyncpg.PostgresSystemError,
)
"""What is the replica's fault, and not that of the question: away, full, broken, without a table, or in conflict.

A conflict is a query that would have kept the replica from replaying what the primary has done meanwhile.
"""


class Unfit(Exception):
    """The replica cannot be used now. ``why`` is one word for it, the text tells it to whoever runs the gateway."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


@dataclass(frozen=True)
class Standing:
    """How the replica stands: why it cannot be read from now, in one word and in a text, and its lag in seconds.

    ``why`` is empty where it can; ``lag`` is None where that cannot be told.
    """

    why: str
    text: str
    lag: float | None = None

    @property
    def is_fit(self) -> bool:
        """Whether it can be read from now."""
        return not self.why


class Replica(Asking):
    """Answers as the primary would, or lets the primary answer: whoever asks notices nothing but the time it takes."""

    def __init__(
        self, config: DatabaseConfig, primary: Database, reads: Counter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Makes no connection. ``reads`` has the labels ``answered_by`` and ``why``.

        Raises ValueError without ``replica_url``.
        """
        if config.replica_url is None:
            raise ValueError("database.replica_url is not set")
        super().__init__(primary.columns)
        self._primary = primary
        self._reads = reads
        self._clock = clock
        self._schema = config.schema
        self._patience = config.replica_max_lag
        self._longest = config.statement_timeout + _OVERTIME
        self._most = config.pool_max
        self._way = way_to(config.replica_url, config)
        self._way["timeout"] = min(_CONNECTING, config.connect_timeout)
        # It may become a primary one day, and is not ours to write to.
        self._way["server_settings"] = self._way["server_settings"] | {"default_transaction_read_only": "on"}
        self._pool: asyncpg.Pool[Row] | None = None
        self._reached: int | None = None
        self._rests_until: float | None = None
        self.left_alone: Unfit | None = None
        """Why the replica is not used at present; None where it is, or nothing has been asked yet."""

    async def start(self) -> None:
        """Be ready to be asked. The replica may be away: it is connected to when it is needed."""
        self._pool = await asyncpg.create_pool(
            **self._way,
            min_size=0,
            max_size=self._most,
            max_inactive_connection_lifetime=300.0,
            init=self._introduce,
            reset=leave_as_it_is,
        )

    async def stop(self, patience: float = 10.0) -> None:
        """Let go of all connections; a query that still runs gets ``patience`` seconds to end."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(patience):
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    async def ask(self, question: Question) -> Any:
        """What the question gives: by the replica if it can say it now, else by the primary."""
        why = self._why_not()
        if why is None:
            is_trial = self._rests_until is not None
            try:
                answer = await self._ask(question)
            except Unfit as unfit:
                why = unfit.why
                self._leave_alone(unfit)
            else:
                # Others may have begun before it failed, and say nothing of how it is now.
                if is_trial:
                    self._use_again()
                self._reads.labels("replica", "").inc()
                return answer
        self._reads.labels("primary", why).inc()
        return await self._primary.ask(question)

    async def connect(self) -> "asyncpg.Connection[Row]":
        """A connection of the caller's own. Raises Unfit, and what asyncpg raises."""
        connection: asyncpg.Connection[Row] = await asyncpg.connect(**self._way)
        try:
            await self._introduce(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def look(self) -> Standing:
        """How the replica stands, over a connection of its own."""
        try:
            with _blamed():
                connection = await self.connect()
            try:
                with _blamed():
                    return await self._measure(connection)
            finally:
                connection.terminate()
        except Unfit as unfit:
            return Standing(unfit.why, str(unfit))

    async def _measure(self, connection: Connection) -> Standing:
        asked_at = self._clock()
        try:
            await self._catch_up(connection, await self._position(await self._at(connection)))
        except Unfit as unfit:
            lag = await connection.fetchval(_LAG) if unfit.why == "behind" else None
            return Standing(unfit.why, str(unfit), lag)
        return Standing("", "it has all that is committed", self._clock() - asked_at)

    # -- one question ---------------------------------------------------------------------------------------------

    def _why_not(self) -> str | None:
        """Why the primary is asked at once; None where the replica is to be tried."""
        if self._pool is None or self._primary.in_transaction:
            return "transaction" if self._primary.in_transaction else "away"
        if self._rests_until is not None:
            if self._clock() < self._rests_until:
                return "resting"
            # One tries whether it is well again; nobody else has to wait for that.
            self._rests_until = self._clock() + REST
        if self._pool.get_size() >= self._most and not self._pool.get_idle_size():
            return "busy"
        return None

    async def _ask(self, question: Question) -> Any:
        with _blamed():
            seen = self._reached if self._reached is not None else await self._with(self._at)
        after = await self._position(seen)

        async def once_caught_up(connection: Connection) -> Any:
            self._reached = await self._catch_up(connection, after)
            async with asyncio.timeout(self._longest):
                return await question(connection)

        with _blamed():
            return await self._with(once_caught_up)

    async def _with(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Use a connection from the pool; one that does not answer in time is let go."""
        if self._pool is None:
            raise Unfit("away", "the gateway is stopping")
        async with self._pool.acquire() as connection:
            try:
                return await use(connection)
            except TimeoutError:
                # A dead server would also not answer that the query is not wanted any more.
                connection.terminate()
                raise

    async def _position(self, seen: int) -> int:
        """How far the primary's log has come, which the replica had reached ``seen`` of before.

        Raises Unfit where the two have no history in common, and what asyncpg raises when the primary is away.
        """
        try:
            at: int = await self._primary.fetchval(_PRIMARY)
        except asyncpg.ObjectNotInPrerequisiteStateError:
            raise Unfit("refused", "database.url leads to a standby itself: nothing says how far that is") from None
        if seen > at:
            raise Unfit(
                "refused", "it has what the primary at database.url has not: after a failover it follows another one"
            )
        return at

    async def _at(self, connection: Connection) -> int:
        """How far the replica has come. Raises Unfit where it is none any more."""
        row = await connection.fetchrow(_REPLICA, timeout=max(self._patience, _CONNECTING))
        if row is None or not row["is_standby"]:
            raise Unfit("refused", "it is no standby: promoted, or not one that database.replica_url should name")
        return int(row["at"])

    async def _catch_up(self, connection: Connection, after: int) -> int:
        """Wait until the replica has come so far, and give how far that is. Raises Unfit if that takes too long."""
        until = self._clock() + self._patience
        pauses = iter(_PAUSES)
        while (at := await self._at(connection)) < after:
            if self._clock() >= until:
                raise Unfit("behind", f"it is more than {self._patience:g} seconds behind the primary")
            await asyncio.sleep(next(pauses, _PAUSES[-1]))
        return at

    async def _introduce(self, connection: Connection) -> None:
        """Once for each new connection: is this a standby of our primary? Raises Unfit. Sets how identifiers travel."""
        try:
            await look_at(connection, self._schema, may_be_pooled=False)
        except (PoolerInBetween, SearchPathLost):
            raise Unfit(
                "refused", "there is a pooler in front of it: let database.replica_url name the replica itself"
            ) from None
        ours, its = await self._primary.fetchrow(_WHO), await connection.fetchrow(_WHO)
        if ours is None or its is None or tuple(ours) != tuple(its):
            raise Unfit(
                "refused", "it copies another Postgres than the one at database.url, or leads to another database"
            )
        await self._at(connection)
        await read_ids(connection)

    # -- from one question to the next ----------------------------------------------------------------------------

    def _leave_alone(self, unfit: Unfit) -> None:
        if self._pool is None:
            return
        was_used = self._rests_until is None
        self._rests_until, self._reached, self.left_alone = self._clock() + REST, None, unfit
        say = log.warning if was_used else log.debug
        say("replica_left_alone", why=unfit.why, problem=str(unfit))

    def _use_again(self) -> None:
        self._rests_until = self.left_alone = None
        log.info("replica_used_again")


@contextmanager
def _blamed() -> Generator[None]:
    """A block in which the replica's own faults become Unfit."""
    try:
        with startup_settings_refused():
            yield
    except (asyncpg.QueryCanceledError, Unfit):
        # What takes too long there would take too long at the primary, too.
        raise
    except PoolerInBetween:
        raise Unfit(
            "refused", "there is a pooler in front of it: let database.replica_url name the replica itself"
        ) from None
    except _FAULTS as fault:
        is_conflict = isinstance(fault, asyncpg.TransactionRollbackError)
        why, what = ("conflict", "gave up a query") if is_conflict else ("away", "cannot be asked")
        raise Unfit(why, f"it {what} ({type(fault).__name__})") from fault
