"""Attempts by month: every row has a place, whatever the clock says, and a month goes whole."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from structlog.testing import capture_logs

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db import months
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import Migration, migrate, pending
from mpesa_gateway.db.months import FEW, Months, Part, forget_sql, months_from
from mpesa_gateway.doctor.postgres import look_at_postgres
from mpesa_gateway.ids import Ids
from mpesa_gateway.observation import Examination, Level, Observation
from mpesa_gateway.retention import Retention
from mpesa_gateway.standing import ASTRAY, MONTHS, read_months
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.plugin import plugin
from mpesa_gateway_webhooks.tables import AttemptRow
from tests.house.tree import ROOT
from tests.ledger import broken

pytestmark = pytest.mark.as_owner

NOW = datetime(2060, 1, 15, 12, 0, tzinfo=UTC)
"""Far beyond the months that the migration, which goes by Postgres' clock, has put together."""

(ATTEMPTS,) = plugin.months

RELEASED = 2
"""The last of the webhooks' migrations before there were months."""

LAST_OF_MONTHS = 5
"""The last one that made them."""

_WORLD = """
INSERT INTO merchant (merchant_id, name, created_at, updated_at) VALUES ('mer_1', 'Duka', now(), now());
INSERT INTO webhook_endpoint (endpoint_id, merchant_id, url, secret, created_at, updated_at{0})
VALUES ('whe_1', 'mer_1', 'https://shop.example/hook', 'v1.sealed', now(), now(){1});
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body)
VALUES ('evt_1', 'webhook.test', 'mer_1', 'sandbox', 'pay_1', now(), true, '{{}}', '{{}}');
INSERT INTO delivery (delivery_id, event_id, endpoint_id, merchant_id, event_type, payment_id, due_at, created_at{0})
VALUES ('dlv_1', 'evt_1', 'whe_1', 'mer_1', 'webhook.test', 'pay_1', '2300-01-01', now(){1});
"""

WORLD = _WORLD.format(", env", ", 'sandbox'")
WORLD_BEFORE = _WORLD.format("", "")
"""The same before endpoints and deliveries had an env."""

MANY = """
INSERT INTO attempt (attempt_id, delivery_id, at, status, ms)
SELECT $1 || lpad(number::text, 16, '0'), 'dlv_1', $2, 200, 12 FROM generate_series(1, $3) AS number
"""

WHERE = "SELECT tableoid::regclass::text AS part, count(*) FROM attempt GROUP BY 1"


def old_and_new(gateway: Gateway) -> tuple[list[Migration], list[Migration]]:
    """The migrations of before there were months, and all."""
    return [one for one in gateway.migrations if one.owner != "webhooks" or one.number <= RELEASED], gateway.migrations


@pytest.fixture
def settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a gateway without a worker."""
    values |= {"worker": {"in_process": False}}
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator", None)
    return values


@pytest.fixture
async def gateway(settings: dict[str, Any]) -> AsyncGenerator[Gateway]:
    """A gateway in which one delivery was made, and whose clock stands at NOW."""
    async with Gateway(GatewayConfig.from_values(settings), clock=SetClock(NOW)).running() as gateway:
        await gateway.db.execute(WORLD)
        yield gateway


@pytest.fixture
async def before(settings: dict[str, Any]) -> AsyncGenerator[tuple[Gateway, Database]]:
    """A database as the release before has left it, with a delivery, and the gateway that will take it over."""
    gateway = Gateway(GatewayConfig.from_values(settings))
    db = Database(gateway.config.database)
    await db.start()
    await migrate(db, old_and_new(gateway)[0])
    await db.execute(WORLD_BEFORE)
    yield gateway, db
    await db.stop()


@asynccontextmanager
async def connected(db: Database) -> AsyncGenerator["asyncpg.Connection[Any]"]:
    """Somebody else's connection."""
    connection = await db.connect()
    yield connection
    await connection.close()


async def try_at(gateway: Gateway, moment: datetime, count: int = 1) -> None:
    """So many attempts at that moment."""
    await gateway.db.execute(MANY, Ids.least("att", moment), moment, count)


async def spread(db: Database) -> dict[str, int]:
    """How many attempts are in which partition, those of none left out."""
    return {row["part"]: row["count"] for row in await db.fetch(WHERE)}


async def names(gateway: Gateway) -> list[str]:
    """The partitions there are."""
    return [part.name for part in await gateway.months.parts("attempt")]


def later(gateway: Gateway, moment: datetime) -> None:
    """Set the gateway's clock."""
    assert isinstance(gateway.clock, SetClock)
    gateway.clock.advance(moment - gateway.clock.now())


def plan(rows: list[asyncpg.Record]) -> str:
    """What EXPLAIN said."""
    return "\n".join(row[0] for row in rows)


# -- every row has a place ---------------------------------------------------------------------------------------------


async def test_each_month_has_a_partition_before_it_begins(gateway: Gateway) -> None:
    assert await names(gateway) == [
        *("attempt_2060_01", "attempt_2060_02", "attempt_2060_03", "attempt_2060_04"),
        *("attempt_before", "attempt_rest"),
    ]
    for moment in (
        datetime(2060, 1, 1, tzinfo=UTC),
        datetime(2060, 1, 31, 23, 59, 59, 999000, tzinfo=UTC),
        datetime(2060, 2, 1, tzinfo=UTC),
        datetime(2060, 2, 29, 23, 59, 59, 999000, tzinfo=UTC),
        datetime(2060, 3, 1, tzinfo=UTC),
    ):
        await try_at(gateway, moment)
    assert await spread(gateway.db) == {"attempt_2060_01": 2, "attempt_2060_02": 2, "attempt_2060_03": 1}
    assert await gateway.months.prepare() == []
    later(gateway, datetime(2060, 2, 1, tzinfo=UTC))
    assert await gateway.months.prepare() == ["attempt_2060_05"]
    assert await gateway.months.look() == [months.Standing("attempt", [], has_astray=False)]


@pytest.mark.parametrize("month", [(2061, 2), (2300, 1), (2000, 6)], ids=["a year ahead", "far ahead", "back"])
async def test_whatever_the_clock_says_an_attempt_is_written(gateway: Gateway, month: tuple[int, int]) -> None:
    moment = datetime(*month, 3, tzinfo=UTC)
    attempt_id = f"{Ids.least('att', moment)}{'0' * 16}"
    await gateway.db.execute(tables.RECORD_ATTEMPT, attempt_id, "dlv_1", moment, 200, 5, None, "ok")
    delivered = await gateway.db.execute(
        tables.DELIVERED, [f"{attempt_id[:-1]}1"], ["dlv_1"], [200], [5], ["ok"], moment
    )
    assert delivered == "UPDATE 1"
    assert await spread(gateway.db) == {"attempt_before" if month == (2000, 6) else "attempt_rest": 2}
    rows = await gateway.db.run(tables.attempts_of("dlv_1"))
    assert [row["id"] for row in rows] == [attempt_id, f"{attempt_id[:-1]}1"]


async def test_the_rules_are_those_of_one_table(gateway: Gateway) -> None:
    moments = [datetime(1999, 1, 1, tzinfo=UTC), NOW, NOW + timedelta(days=31), datetime(2070, 1, 1, tzinfo=UTC)]
    for moment in moments:
        await try_at(gateway, moment)
        with pytest.raises(asyncpg.UniqueViolationError):
            await try_at(gateway, moment)
        for wrong, column, value in (
            (asyncpg.ForeignKeyViolationError, "delivery_id", "'dlv_2'"),
            (asyncpg.CheckViolationError, "ms", "-1"),
            (asyncpg.CheckViolationError, "error", "'Timeout'"),
            (asyncpg.CheckViolationError, "answer", "repeat('x', 1025)"),
            (asyncpg.NotNullViolationError, "at", "NULL"),
        ):
            with pytest.raises(wrong):
                await gateway.db.execute(
                    f"UPDATE attempt SET {column} = {value} WHERE attempt_id > $1",  # noqa: S608 - as above
                    Ids.least("att", moment),
                )
    assert len(await spread(gateway.db)) == len(moments)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await gateway.db.execute("DELETE FROM delivery")
    assert await broken(gateway) == {}


# -- plans -------------------------------------------------------------------------------------------------------------


async def test_one_attempt_is_looked_for_in_its_month_only(gateway: Gateway) -> None:
    await try_at(gateway, NOW, 2000)
    await gateway.db.execute("ANALYZE attempt")
    attempt_id = Ids.least("att", NOW) + "0" * 15 + "1"
    query: Any = AttemptRow.update({AttemptRow.answer: "erased"}).where(AttemptRow.attempt_id == attempt_id)  # pyright: ignore[reportUnknownVariableType] - Piccolo
    found = plan(await gateway.db.fetch(f"EXPLAIN {query}"))
    assert "attempt_2060_01" in found
    assert "Index Scan" in found
    for other in ("attempt_2060_02", "attempt_2060_03", "attempt_before", "attempt_rest"):
        assert other not in found


@pytest.mark.parametrize("of", ["delivery", "payment"])
async def test_the_attempts_of_a_delivery_are_found_by_each_months_index(gateway: Gateway, of: str) -> None:
    sql, values = (
        (f"{tables.attempts_of('dlv_1')}", ()) if of == "delivery" else (tables.ATTEMPTS_OF_PAYMENT, ("pay_1",))
    )
    async with gateway.db.transaction():
        # With so few rows Postgres would rather read all of them.
        await gateway.db.execute("SET LOCAL enable_seqscan = off")
        found = plan(await gateway.db.fetch(f"EXPLAIN {sql}", *values))
    assert "Seq Scan on attempt" not in found
    for part in await names(gateway):
        assert f"on {part} " in found


async def test_an_index_serves_what_is_still_deleted_one_by_one(gateway: Gateway) -> None:
    for part in ("attempt_before", "attempt_rest"):
        async with gateway.db.transaction():
            for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort"):
                await gateway.db.execute(f"SET LOCAL enable_{way} = off")
            found = plan(await gateway.db.fetch(f"EXPLAIN {forget_sql(part, 'attempt_id')}", "att_1", 500))
        assert f"{part}_pkey" in found
        assert "Seq Scan" not in found
        assert "Sort" not in found


# -- a month goes whole ------------------------------------------------------------------------------------------------


async def test_a_month_goes_when_the_youngest_of_it_is_old_enough(gateway: Gateway) -> None:
    await try_at(gateway, datetime(2060, 1, 2, tzinfo=UTC), 30)
    await try_at(gateway, datetime(2060, 1, 31, 23, tzinfo=UTC), 20)
    await try_at(gateway, datetime(2060, 2, 1, tzinfo=UTC), 10)
    await try_at(gateway, datetime(2000, 1, 1, tzinfo=UTC), 7)
    await try_at(gateway, datetime(2059, 12, 20, tzinfo=UTC), 1200)
    # The last row of January is 60 days old; the month's end is not.
    later(gateway, datetime(2060, 3, 31, 23, 30, tzinfo=UTC))
    counts = await Retention(gateway).forget()
    # All that the migration found has expired with its partition; what had no month goes one by one.
    assert (counts["attempts at delivery: months"], counts["attempts at delivery"]) == (1, 1200)
    assert await spread(gateway.db) == {"attempt_2060_01": 50, "attempt_2060_02": 10}
    later(gateway, datetime(2060, 4, 1, 1, tzinfo=UTC))
    counts = await Retention(gateway).forget()
    assert (counts["attempts at delivery: months"], counts["attempts at delivery"]) == (1, 0)
    assert await spread(gateway.db) == {"attempt_2060_02": 10}
    assert "attempt_2060_01" not in await names(gateway)
    assert (await Retention(gateway).forget())["attempts at delivery: months"] == 0
    # Even one that comes from then has a place.
    await try_at(gateway, datetime(2060, 1, 2, tzinfo=UTC))
    assert await spread(gateway.db) == {"attempt_2060_02": 10, "attempt_rest": 1}
    assert await broken(gateway) == {}


async def test_kept_for_ever_no_month_goes(settings: dict[str, Any]) -> None:
    settings["webhooks"] = settings.get("webhooks", {}) | {"keep_attempts_days": 0}
    async with Gateway(GatewayConfig.from_values(settings), clock=SetClock(NOW)).running() as gateway:
        later(gateway, NOW + timedelta(days=9000))
        assert "attempts at delivery" not in await Retention(gateway).forget()
        assert "attempt_2060_01" in await names(gateway)


async def test_a_month_that_somebody_reads_goes_another_night_and_nobody_waits_for_it(gateway: Gateway) -> None:
    await try_at(gateway, NOW, 3)
    later(gateway, NOW + timedelta(days=200))
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        # While nobody asks for the table, others write it.
        waits.append(seconds)
        await try_at(gateway, gateway.clock.now() + timedelta(hours=len(waits)))

    patient = Months(gateway.db, gateway.clock, [ATTEMPTS], pause)
    async with connected(gateway.db) as other:
        async with other.transaction():
            await other.fetch("SELECT FROM attempt")
            assert await patient.drop(ATTEMPTS, gateway.clock.now() - timedelta(days=90)) == 0
        assert len(waits) == 5 * (months.TRIES - 1)
    assert await patient.drop(ATTEMPTS, gateway.clock.now() - timedelta(days=90)) == 5
    assert await spread(gateway.db) == {"attempt_rest": len(waits)}


# -- several at once ---------------------------------------------------------------------------------------------------


async def test_two_workers_make_each_month_once(gateway: Gateway, settings: dict[str, Any]) -> None:
    later(gateway, datetime(2061, 7, 1, tzinfo=UTC))
    async with Gateway(GatewayConfig.from_values(settings), clock=SetClock(NOW)).running() as other:
        later(other, gateway.clock.now())
        async with connected(gateway.db) as holder:
            # Both stand before the same door when it opens.
            async with holder.transaction():
                await holder.execute("LOCK TABLE ONLY attempt IN SHARE UPDATE EXCLUSIVE MODE")
                both = asyncio.gather(gateway.months.prepare(), other.months.prepare())

                async def both_wait() -> bool:
                    waiting = await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                    return bool(waiting == 2)

                await eventually(both_wait)
            with capture_logs() as said:
                made = await both
            assert {line["event"] for line in said} == {"month_made"}
        assert sorted(made[0] + made[1]) == ["attempt_2061_07", "attempt_2061_08", "attempt_2061_09", "attempt_2061_10"]
        later(gateway, NOW + timedelta(days=2000))
        before = gateway.clock.now() - timedelta(days=90)
        dropped = await asyncio.gather(gateway.months.drop(ATTEMPTS, before), other.months.drop(ATTEMPTS, before))
        assert max(dropped) >= 1
    assert await names(gateway) == ["attempt_rest"]
    await try_at(gateway, gateway.clock.now())


async def test_parts_leaves_out_a_partition_that_another_process_drops_meanwhile(gateway: Gateway) -> None:
    db = gateway.db
    before = await names(gateway)
    async with connected(db) as reader, connected(db) as other, reader.transaction(isolation="repeatable_read"):
        await reader.fetchval("SELECT count(*) FROM pg_class")
        await other.execute(f"DROP TABLE {before[0]}")
        # The snapshot still has the partition. Its bound is gone.
        statement = months._PARTS  # pyright: ignore[reportPrivateUsage] - the statement that raced
        rows = await reader.fetch(statement, "attempt")
        assert [row["name"] for row in rows if row["bound"] is None] == [before[0]]
        read = Months(cast("Database", reader), gateway.clock, [ATTEMPTS])
        assert [part.name for part in await read.parts("attempt")] == before[1:]


async def test_a_table_in_use_or_a_name_that_is_taken_is_put_off_and_stops_nothing(gateway: Gateway) -> None:
    async def no_pause(_: float) -> None:
        """At once."""

    patient = Months(gateway.db, gateway.clock, [ATTEMPTS], no_pause)
    later(gateway, datetime(2061, 1, 5, tzinfo=UTC))
    async with connected(gateway.db) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE ONLY attempt IN SHARE UPDATE EXCLUSIVE MODE")
            # Each month is tried once: how often a table in use is asked for, the test above counts.
            assert await patient.prepare(tries=1) == []
        # A month that somebody has detached, to keep it.
        await other.execute("CREATE TABLE attempt_2061_02 (LIKE attempt)")
    assert await patient.prepare() == ["attempt_2061_01", "attempt_2061_03", "attempt_2061_04"]
    (standing,) = await patient.look()
    assert standing.missing == ["2061-02"]
    found = await seen(gateway)
    assert (found.level, found.text[:41]) == (Level.WARNING, "attempt has no partition for 2061-02: suc")
    assert {gauge: value for gauge, _, value in await read_months(gateway)} == {MONTHS: 1, ASTRAY: 0}
    await try_at(gateway, datetime(2061, 2, 5, tzinfo=UTC))
    assert await spread(gateway.db) == {"attempt_rest": 1}


async def test_each_gateway_looks_after_its_own_schema(gateway: Gateway, settings: dict[str, Any]) -> None:
    second = settings | {
        "database": settings["database"] | {"schema": "second"},
        "valkey": settings["valkey"] | {"prefix": "second"},
    }
    async with Gateway(GatewayConfig.from_values(second), clock=SetClock(NOW)).running() as other:
        await other.db.execute(WORLD)
        assert await names(other) == await names(gateway)
        await try_at(other, NOW, 5)
        later(gateway, NOW + timedelta(days=200))
        assert (await Retention(gateway).forget())["attempts at delivery: months"] == 5
        assert await names(gateway) == ["attempt_rest"]
        assert await spread(other.db) == {"attempt_2060_01": 5}
        assert (await gateway.months.prepare())[0] == "attempt_2060_08"
        assert "attempt_2060_08" not in await names(other)


# -- rows without a month ----------------------------------------------------------------------------------------------


async def seen(gateway: Gateway) -> Observation:
    """What the doctor says of months."""
    db = Database(gateway.config.database)
    try:
        found = [one async for one in look_at_postgres(gateway, db, Examination(gateway.clock.now(), is_live=False))]
    finally:
        await db.stop()
    (one,) = [each for each in found if each.name == "postgres.months"]
    return one


async def test_few_rows_that_came_too_early_are_taken_along_by_their_month(gateway: Gateway) -> None:
    assert (await seen(gateway)).level == Level.OK
    await try_at(gateway, datetime(2060, 6, 5, tzinfo=UTC), 40)
    await try_at(gateway, datetime(2090, 6, 5, tzinfo=UTC), 2)
    assert await spread(gateway.db) == {"attempt_rest": 42}
    assert (await seen(gateway)).level == Level.NOTE
    assert {gauge: value for gauge, _, value in await read_months(gateway)} == {MONTHS: 0, ASTRAY: 1}
    later(gateway, datetime(2060, 6, 6, tzinfo=UTC))
    (standing,) = await gateway.months.look()
    assert standing.missing == ["2060-06", "2060-07"]
    assert (await gateway.months.prepare())[0] == "attempt_2060_06"
    assert await spread(gateway.db) == {"attempt_2060_06": 40, "attempt_rest": 2}


async def test_too_many_stay_where_they_are_and_go_one_by_one(gateway: Gateway) -> None:
    await try_at(gateway, datetime(2060, 6, 5, tzinfo=UTC), FEW + 1)
    later(gateway, datetime(2060, 6, 6, tzinfo=UTC))
    assert await gateway.months.prepare() == ["attempt_2060_07", "attempt_2060_08", "attempt_2060_09"]
    await try_at(gateway, datetime(2060, 6, 7, tzinfo=UTC))
    assert await spread(gateway.db) == {"attempt_rest": FEW + 2}
    later(gateway, datetime(2060, 8, 5, tzinfo=UTC))
    assert (await Retention(gateway).forget())["attempts at delivery"] == FEW + 1
    assert await spread(gateway.db) == {"attempt_rest": 1}


# -- from before to after, and back ------------------------------------------------------------------------------------


async def test_an_installation_is_taken_over_without_a_row_being_read_or_moved(
    before: tuple[Gateway, Database],
) -> None:
    gateway, db = before
    for year in (2020, 2024, 2025):
        await db.execute(MANY, Ids.least("att", datetime(year, 5, 1, tzinfo=UTC)), datetime(year, 5, 1, tzinfo=UTC), 50)
    rows = await db.fetch("SELECT * FROM attempt ORDER BY attempt_id")
    file = await db.fetchval("SELECT relfilenode FROM pg_class WHERE oid = 'attempt'::regclass")
    await db.execute("CREATE ROLE reports_of_months; GRANT SELECT ON attempt TO reports_of_months")
    try:
        first, second, third, *_ = await pending(db, gateway.migrations)
        await migrate(db, [*old_and_new(gateway)[0], first, second])
        said: list[str] = []
        async with connected(db) as connection:
            connection.add_log_listener(lambda _, message: said.append(str(message)))
            await connection.execute("SET client_min_messages = debug1")
            async with connection.transaction():
                await connection.execute(third.sql)
        assert [text for text in said if "implied by existing constraints" in text and '"attempt_before"' in text]
        assert await db.fetchval("SELECT relfilenode FROM pg_class WHERE oid = 'attempt_before'::regclass") == file
        assert await db.fetch("SELECT * FROM attempt ORDER BY attempt_id") == rows
        assert await db.fetchval("SELECT has_table_privilege('reports_of_months', 'attempt', 'SELECT')")
        assert not await db.fetchval("SELECT has_table_privilege('reports_of_months', 'attempt', 'DELETE')")
    finally:
        await db.execute("DROP OWNED BY reports_of_months; DROP ROLE reports_of_months")


OLD_FORGET = """
DELETE FROM attempt WHERE attempt_id IN (
    SELECT attempt_id FROM attempt WHERE attempt_id < $1 ORDER BY attempt_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""
"""What the release before does at night."""

OLD_ATTEMPTS = "SELECT attempt_id AS id FROM attempt WHERE delivery_id = $1 ORDER BY at, attempt_id"

OLD_ERASE = "UPDATE attempt SET answer = $2 WHERE attempt_id = $1"


async def test_the_release_before_works_at_every_step(before: tuple[Gateway, Database]) -> None:
    gateway, db = before
    old, everything = old_and_new(gateway)
    # The files of the months, and no later one: that release may end it.
    steps = [one for one in await pending(db, everything) if one.number <= LAST_OF_MONTHS]
    for number, step in enumerate([*steps, None]):
        now = await db.fetchval("SELECT now()")
        attempt_id = f"{Ids.least('att', now)}{number:016}"
        await db.execute(tables.RECORD_ATTEMPT, attempt_id, "dlv_1", now, None, 5, "Timeout", "")
        assert [row["id"] for row in await db.fetch(OLD_ATTEMPTS, "dlv_1")][-1] == attempt_id
        assert await db.execute(OLD_ERASE, attempt_id, "erased") == "UPDATE 1"
        long_ago = datetime(2001, 1, 1 + number, tzinfo=UTC)
        await db.execute(MANY, Ids.least("att", long_ago), long_ago, 3)
        assert await db.execute(OLD_FORGET, Ids.least("att", datetime(2002, 1, 1, tzinfo=UTC)), 500) == "DELETE 3"
        assert await migrate(db, old) == []
        if step is not None:
            await migrate(
                db, [*old, *[one for one in everything if one.owner == "webhooks" and one.number <= step.number]]
            )
    assert await db.fetchval("SELECT count(*) FROM attempt") == 4


async def test_the_way_back_that_is_written_down_leads_back(before: tuple[Gateway, Database]) -> None:
    gateway, db = before
    shape = await described(db)
    await db.execute(MANY, Ids.least("att", datetime(2025, 5, 1, tzinfo=UTC)), datetime(2025, 5, 1, tzinfo=UTC), 50)
    await migrate(db, gateway.migrations)
    moment = await db.fetchval("SELECT now()")
    (here, beyond) = (Months(db, SetClock(at), [ATTEMPTS]) for at in (moment, NOW))
    assert await here.prepare() != []
    assert await beyond.prepare() != []
    await db.execute(MANY, Ids.least("att", NOW), NOW, 5)
    rows = await db.fetch("SELECT * FROM attempt ORDER BY attempt_id")
    await db.execute(way_back())
    assert await described(db) == shape
    assert await db.fetch("SELECT * FROM attempt ORDER BY attempt_id") == rows
    # This release, too, works on what was put together again.
    assert await here.prepare() == []
    assert await here.look() == []
    assert await here.forget(ATTEMPTS, datetime(2026, 1, 1, tzinfo=UTC), 500) == 50


def way_back() -> str:
    """The SQL under its heading in the documentation."""
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8").partition("## The way back from months")[2]
    return text.partition("```sql\n")[2].partition("```")[0]


async def described(db: Database) -> dict[str, Any]:
    """Columns, rules, indexes and grants of the table of attempts."""
    return {
        name: sorted(str(row[0]) for row in await db.fetch(sql))
        for name, sql in {
            "columns": "SELECT attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' || "
            "attcollation FROM pg_attribute WHERE attrelid = 'attempt'::regclass AND attnum > 0",
            "rules": "SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = 'attempt'::regclass AND contype <> 'n'",
            "indexes": "SELECT indexdef FROM pg_indexes WHERE tablename = 'attempt' AND schemaname = current_schema()",
            "tables": "SELECT relname FROM pg_class WHERE relname LIKE 'attempt%' AND relkind IN ('r', 'p')",
        }.items()
    }


# -- small things ------------------------------------------------------------------------------------------------------


def test_months_begin_in_utc_whatever_the_year() -> None:
    east = datetime(2026, 12, 1, 1, tzinfo=UTC) - timedelta(hours=2)
    assert months_from(east, 3) == [
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    ]


def test_a_part_knows_what_belongs_to_it() -> None:
    assert Part("m", "att_b", "att_c").takes("att_b")
    assert not Part("m", "att_b", "att_c").takes("att_c")
    assert Part("before", None, "att_b").takes("att_a")
    assert not Part("rest", None, None, is_rest=True).takes("att_z")


def test_a_worker_does_it_every_night(settings: dict[str, Any]) -> None:
    job = Gateway(GatewayConfig.from_values(settings)).jobs_by_name["kernel.make_months"]
    assert (job.cron, job.timeout) == ("47 22 * * *", 300)
