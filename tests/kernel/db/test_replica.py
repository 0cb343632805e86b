"""Reads by a streaming replica: never less than was committed, never a failure that the primary would not have had."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.replica import REST, Replica
from mpesa_gateway.doctor.replica import look_at_replica
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.observation import Level
from mpesa_gateway.secret import Secret
from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.testing.pytest_plugin import Servers
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway.testing.standby import Standby, database_of, on, running_primary, running_standby
from tests.identifiers import identifier

_IS_REPLICA = "SELECT pg_is_in_recovery()"


@dataclass
class Pair:
    """A database, the replica of it, and what is counted of who answered."""

    replica_url: str
    db: Database
    replica: Replica
    reads: Counter
    seconds: float = 0.0
    """The time, as the replica is told it, which a test moves."""

    async def answered_by(self) -> str:
        """Who answers now, and why it is not the replica."""
        before = self.counts()
        is_replica = await self.replica.fetchval(_IS_REPLICA)
        ((by, why),) = [labels for labels, count in self.counts().items() if count > before.get(labels, 0)]
        assert is_replica == (by == "replica")
        return f"{by} {why}".strip()

    def counts(self) -> dict[tuple[str, ...], float]:
        """How often each answered, and why."""
        return {
            (sample.labels["answered_by"], sample.labels["why"]): sample.value
            for metric in self.reads.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    async def on_replica(self, sql: str) -> Any:
        """Ask the replica itself, whether or not it is read from."""
        return await on(self.replica_url, sql)

    async def is_used_again(self) -> None:
        """Let the replica's rest pass until it is read from again."""

        async def answers() -> bool:
            self.seconds += REST
            return bool(await self.replica.fetchval(_IS_REPLICA))

        await eventually(answers, 30)


@asynccontextmanager
async def connected(url: str, replica_url: str, **more: Any) -> AsyncGenerator[Pair]:
    """Both, connected for the length of the block. The replica is waited for as long as the machine is slow."""
    values: dict[str, Any] = {"replica_max_lag": 10.0} | more
    config = DatabaseConfig(url=Secret(url), replica_url=Secret(replica_url), **values)
    db, reads = Database(config), KernelMetrics(CollectorRegistry()).replica_reads
    replica = Replica(config, db, reads, clock=lambda: both.seconds + asyncio.get_running_loop().time())
    both = Pair(replica_url, db, replica, reads)
    await db.start()
    await replica.start()
    try:
        yield both
    finally:
        await replica.stop(1)
        await db.stop()


@asynccontextmanager
async def paired(url: str, standby: Standby, **more: Any) -> AsyncGenerator[Pair]:
    """The same, with a table, once the replica has the database."""
    await on(url, "CREATE SCHEMA mpesa CREATE TABLE till (id int PRIMARY KEY, note text)")
    async with connected(url, standby.url(url), **more) as pair:
        await pair.is_used_again()
        yield pair


@asynccontextmanager
async def paused(pair: Pair) -> AsyncGenerator[None]:
    """The replica receives everything, and replays nothing in the block."""
    await pair.on_replica("SELECT pg_wal_replay_pause()")
    try:
        yield
    finally:
        await pair.on_replica("SELECT pg_wal_replay_resume()")


@pytest.fixture(scope="module")
def primary() -> Generator[EmbeddedPostgres]:
    """A primary for the tests of this file."""
    with running_primary() as found:
        yield found


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres) -> Generator[Standby]:
    """A standby that tests leave as they found it."""
    with running_standby(primary) as found:
        yield found


@pytest.fixture
def url(primary: EmbeddedPostgres) -> Generator[str]:
    """An empty database, copied as soon as it is made."""
    with database_of(primary) as found:
        yield found


@pytest.fixture
async def pair(url: str, standby: Standby) -> AsyncGenerator[Pair]:
    """A database and its replica."""
    async with paired(url, standby) as found:
        yield found


async def test_what_is_committed_is_read_at_once_whoever_has_committed_it(url: str, pair: Pair) -> None:
    other = Database(DatabaseConfig(url=Secret(url)))
    await other.start()
    for number in range(200):
        writer = (pair.db, other)[number % 2]
        await writer.execute("INSERT INTO till VALUES ($1, 'paid')", number)
        assert len(await pair.replica.fetch("SELECT * FROM till")) == number + 1
    await other.stop()
    assert await pair.answered_by() == "replica"


async def test_each_way_to_ask_is_answered_by_the_replica(pair: Pair) -> None:
    await pair.db.execute("INSERT INTO till VALUES (1, 'paid')")
    sql = "SELECT id, note, pg_is_in_recovery() AS there FROM till WHERE id = $1"
    for ask in (pair.replica.fetch, pair.replica.fetch_planned):
        assert [tuple(row) for row in await ask(sql, 1)] == [(1, "paid", True)]
    assert tuple(await pair.replica.fetchrow(sql, 1) or ()) == (1, "paid", True)
    assert await pair.replica.fetchval("SELECT note FROM till WHERE pg_is_in_recovery()") == "paid"


async def test_identifiers_are_text_at_the_replica_too(pair: Pair) -> None:
    payment_id = identifier("pay")
    row = await pair.replica.fetchrow(f"{_IS_REPLICA}, $1::uuid, $2::uuid[]", payment_id, [payment_id])
    assert row is not None
    assert tuple(row) == (True, payment_id, [payment_id])


async def test_a_transaction_sees_what_it_has_written_itself(pair: Pair) -> None:
    async with pair.db.transaction():
        await pair.db.execute("INSERT INTO till VALUES (1, 'mine')")
        assert await pair.replica.fetchval("SELECT note FROM till") == "mine"
        assert await pair.answered_by() == "primary transaction"


async def test_a_replica_that_is_behind_is_left_alone_until_it_has_caught_up(url: str, standby: Standby) -> None:
    async with paired(url, standby, replica_max_lag=0.2) as pair:
        async with paused(pair):
            await pair.db.execute("INSERT INTO till VALUES (1, 'new')")
            with capture_logs() as logs:
                assert await pair.replica.fetchval("SELECT note FROM till") == "new"
                assert await pair.answered_by() == "primary resting"
                pair.seconds += REST
                assert await pair.answered_by() == "primary behind"
                standing = await pair.replica.look()
        assert (standing.is_fit, standing.why) == (False, "behind")
        assert standing.lag is not None
        # One warning, however often it is tried again.
        assert [(line["event"], line["why"]) for line in logs if line["log_level"] != "debug"] == [
            ("replica_left_alone", "behind")
        ]
        with capture_logs() as logs:
            await pair.is_used_again()
        assert [line["event"] for line in logs if line["log_level"] == "info"] == ["replica_used_again"]
        assert await pair.replica.fetchval("SELECT note FROM till") == "new"


async def test_an_idle_primary_makes_nobody_late(url: str, standby: Standby) -> None:
    async with paired(url, standby, replica_max_lag=2.0) as pair:

        async def answers_while_it_replays_nothing() -> bool:
            await pair.is_used_again()
            async with paused(pair):
                # Nothing was committed since, so it lacks nothing; but Postgres may have written something by itself.
                return await pair.answered_by() == "replica" and (await pair.replica.look()).is_fit

        await eventually(answers_while_it_replays_nothing, 60)


async def test_only_one_waits_while_a_replica_is_tried_again(url: str, standby: Standby) -> None:
    async with paired(url, standby, replica_max_lag=0.3) as pair:
        async with paused(pair):
            await pair.db.execute("INSERT INTO till VALUES (1, 'new')")
            await pair.replica.fetchval("SELECT 1")
            pair.seconds += REST
            before = dict(pair.counts())
            await asyncio.gather(*(pair.replica.fetchval("SELECT 1") for _ in range(20)))
            after = pair.counts()
        assert after["primary", "behind"] - before["primary", "behind"] == 1
        assert after["primary", "resting"] - before.get(("primary", "resting"), 0) == 19


async def test_a_replica_that_dies_under_questions_fails_none_and_is_used_again(pair: Pair, standby: Standby) -> None:
    await pair.db.execute("INSERT INTO till SELECT n, 'paid' FROM generate_series(1, 1000) AS n")
    assert await pair.answered_by() == "replica"
    asked, is_over = 0, False

    async def keep_asking() -> None:
        nonlocal asked
        while not is_over:
            assert len(await pair.replica.fetch("SELECT * FROM till")) == 1000
            asked += 1

    async def are_answered() -> None:
        wanted = asked + 20

        async def have_been() -> bool:
            return asked >= wanted

        await eventually(have_been, 30)

    with capture_logs() as logs:
        askers = [asyncio.create_task(keep_asking()) for _ in range(5)]
        for _ in range(2):
            await are_answered()
            await asyncio.to_thread(standby.stop)
            await are_answered()
            # In this thread: it is to live as long as the process, and would end with any other.
            standby.start()
            await pair.is_used_again()
        await are_answered()
        is_over = True
        await asyncio.gather(*askers)
    assert [line["why"] for line in logs if line["log_level"] == "warning"] == ["away", "away"]


async def test_a_replica_whose_machine_says_nothing_any_more_holds_nobody_up(url: str, standby: Standby) -> None:
    async with paired(url, standby, replica_max_lag=2.0) as pair:
        standby.freeze()
        try:
            async with asyncio.timeout(30):
                assert await pair.answered_by() == "primary away"
                pair.seconds += REST
                # Not even connecting is answered.
                assert await pair.answered_by() == "primary away"
        finally:
            standby.thaw()
        await pair.is_used_again()


async def test_a_query_that_keeps_the_replica_from_replaying_is_answered_by_the_primary(pair: Pair) -> None:
    await pair.db.execute("INSERT INTO till VALUES (1, 'paid')")
    sql = "SELECT note, pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END) FROM till"
    asking = asyncio.create_task(pair.replica.fetch(sql))
    at_it = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%THEN 60%' AND wait_event = 'PgSleep'"
    await eventually(lambda: pair.on_replica(at_it))
    with capture_logs() as logs:
        async with pair.db.transaction():
            await pair.db.execute("LOCK TABLE till IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(30):
            assert [row["note"] for row in await asking] == ["paid"]
    (line,) = [line for line in logs if line["event"] == "replica_left_alone"]
    assert (line["why"], line["problem"]) == ("conflict", "it gave up a query (SerializationError)")
    conflicts = "SELECT confl_lock FROM pg_stat_database_conflicts WHERE datname = current_database()"
    await eventually(lambda: pair.on_replica(conflicts))


async def test_what_takes_too_long_is_not_asked_twice(url: str, standby: Standby) -> None:
    async with paired(url, standby, statement_timeout=0.5) as pair:
        with pytest.raises(asyncpg.QueryCanceledError):
            await pair.replica.fetchval("SELECT pg_sleep(60)")
        assert await pair.answered_by() == "replica"


async def test_a_question_that_is_wrong_is_refused_and_blames_nobody(pair: Pair) -> None:
    assert await pair.answered_by() == "replica"
    with pytest.raises(asyncpg.DivisionByZeroError):
        await pair.replica.fetchval("SELECT 1 / $1::int", 0)
    with pytest.raises(asyncpg.DataError):
        await pair.replica.fetchval("SELECT $1::int", "many")
    assert await pair.answered_by() == "replica"


async def test_after_a_failover_neither_the_new_primary_nor_a_copy_of_the_old_one_is_read_from(
    primary: EmbeddedPostgres, url: str, standby: Standby
) -> None:
    with running_standby(primary) as promoted:
        async with paired(url, promoted) as pair:
            assert await pair.answered_by() == "replica"
            await pair.on_replica("ALTER SYSTEM SET primary_conninfo = ''")
            await pair.on_replica("SELECT pg_reload_conf()")
            receivers = "SELECT count(*) = 0 FROM pg_stat_wal_receiver"
            await eventually(lambda: pair.on_replica(receivers))
            await pair.db.execute("INSERT INTO till SELECT n, repeat('x', 500) FROM generate_series(1, 5000) AS n")
            async with connected(url, standby.url(url)) as other:
                assert await other.replica.fetchval("SELECT count(*) FROM till WHERE pg_is_in_recovery()") == 5000
            await pair.on_replica("SELECT pg_promote(wait => true)")
            await pair.on_replica("INSERT INTO mpesa.till VALUES (7, 'of the new primary') RETURNING 1")
            pair.seconds += REST
            with capture_logs() as logs:
                assert await pair.answered_by() == "primary refused"
                pair.seconds += REST
                assert await pair.answered_by() == "primary refused"
            assert [line["log_level"] for line in logs] == ["warning", "debug"]
            assert "promoted" in logs[0]["problem"]
        async with connected(promoted.url(url), standby.url(url)) as after:
            assert await after.replica.fetchval("SELECT note FROM till") == "of the new primary"
            assert await after.answered_by() == "primary resting"
            assert "has what the primary at database.url has not" in (await after.replica.look()).text


async def test_a_copy_of_another_postgres_or_of_another_database_is_refused(
    primary: EmbeddedPostgres, url: str, standby: Standby, servers: Servers
) -> None:
    for wrong in (servers.database_url, standby.url(primary.url)):
        async with connected(url, wrong) as pair:
            assert await pair.answered_by() == "primary refused"
            assert "another Postgres" in (await pair.replica.look()).text


async def test_the_primary_itself_is_no_replica(url: str) -> None:
    async with connected(url, url) as pair:
        assert await pair.answered_by() == "primary refused"
        assert "no standby" in (await pair.replica.look()).text


async def test_the_doctor_says_what_is_wrong_with_it(url: str, standby: Standby) -> None:
    async with paired(url, standby) as pair:

        async def seen(**changes: Any) -> list[tuple[str, Level, str]]:
            values: dict[str, Any] = {"url": Secret(url), "replica_url": Secret(standby.url(url))} | changes
            seen = look_at_replica(DatabaseConfig(**values), pair.db)
            return [(one.name, one.level, one.text) async for one in seen]

        await pair.db.execute("CREATE TABLE migration (owner text)")
        assert await seen(replica_url=None) == []
        fit, feedback = await seen(replica_max_lag=10.0)
        assert fit[:2] == ("postgres.replica", Level.OK)
        assert feedback[:2] == ("postgres.replica.feedback", Level.NOTE)
        async with paused(pair):
            await pair.db.execute("INSERT INTO migration VALUES ('kernel')")
            ((name, level, text),) = await seen(replica_max_lag=0.2)
        assert (name, level) == ("postgres.replica", Level.WARNING)
        assert "more than 0.2 seconds behind" in text
        secret = "opens-nothing"
        for wrong, expected, says in (
            (url, Level.PROBLEM, "no standby"),
            (f"postgresql://mpesa:{secret}@127.0.0.1:1/shop", Level.WARNING, "ConnectionRefusedError"),
            (standby.url(url).replace("://mpesa:", f"://mpesa:{secret}"), Level.WARNING, "InvalidPasswordError"),
        ):
            ((_, level, text),) = await seen(replica_url=Secret(wrong))
            assert level is expected
            assert says in text
            assert secret not in text
