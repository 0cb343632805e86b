"""What has been kept long enough goes a little at a time: it waits for nobody, and nobody waits for it."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.ids import Ids
from mpesa_gateway.retention import Retention

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
BATCH = 500
ROWS = 100_000

CALLBACKS = """
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, subject_id, handle, result_code, body,
    verdict, applied_at, due_at)
SELECT $1 || lpad(number::text, 16, '0'), 'stk', sha256(($1 || number || $4)::bytea), $2::timestamptz, '127.0.0.1', '',
    '', '0', '{}', $4::text, CASE WHEN $4 = 'applied' THEN $2::timestamptz END,
    CASE WHEN $4 = 'waiting' THEN $2::timestamptz END
FROM generate_series($5::integer + 1, $5 + $3::integer) number
"""


@pytest.fixture
async def gateway(values: dict[str, Any]) -> AsyncGenerator[Gateway]:
    """A gateway without a worker, whose clock stands."""
    values |= {"worker": {"in_process": False}, "retention": {"batch": BATCH}}
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    del values["simulator"]
    async with Gateway(GatewayConfig.from_values(values), clock=SetClock(NOW)).running() as gateway:
        yield gateway


@pytest.fixture
async def other(gateway: Gateway, database_url: str) -> AsyncGenerator["asyncpg.Connection[Any]"]:
    """Somebody else's connection."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        database_url, server_settings={"search_path": gateway.config.database.schema}
    )
    yield connection
    await connection.close()


async def receive(gateway: Gateway, days: int, count: int, verdict: str = "applied") -> str:
    """Put callbacks into the inbox that came so many days ago; gives what their identifiers begin with."""
    at = NOW - timedelta(days=days)
    prefix = Ids.least("cbk", at)
    there: int = await gateway.db.fetchval("SELECT count(*) FROM callback")
    await gateway.db.execute(CALLBACKS, prefix, at, count, verdict, there)
    return prefix


async def test_a_hundred_thousand_rows_go_in_batches_that_lock_nothing_in_between(
    gateway: Gateway, other: "asyncpg.Connection[Any]"
) -> None:
    prefix = await receive(gateway, 200, ROWS)
    young = await receive(gateway, 100, 10)
    left: list[int] = []

    async def pause(seconds: float) -> None:
        """Between two batches, others see the last one gone, and can lock any row that is left without waiting."""
        assert seconds == gateway.config.retention.pause
        left.append(await other.fetchval("SELECT count(*) FROM callback WHERE callback_id < $1", young))
        if len(left) % 20 == 1:
            async with other.transaction():
                locked = await other.execute("SELECT FROM callback FOR UPDATE NOWAIT")
            assert locked == f"SELECT {left[-1] + 10}"

    counts = await Retention(gateway, pause).forget()
    assert counts["callbacks"] == ROWS
    assert left == list(range(ROWS - BATCH, -1, -BATCH))
    assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 10
    assert prefix < young


async def test_what_somebody_has_locked_is_passed_over_and_goes_another_night(
    gateway: Gateway, other: "asyncpg.Connection[Any]"
) -> None:
    prefix = await receive(gateway, 200, 2 * BATCH)
    async with other.transaction():
        await other.execute("SELECT FROM callback WHERE callback_id < $1 FOR UPDATE", f"{prefix}{4:016}")
        # Were it to wait for these three rows, which are the oldest, it would never end.
        assert (await Retention(gateway).forget())["callbacks"] == 2 * BATCH - 3
    assert (await Retention(gateway).forget())["callbacks"] == 3


async def test_two_at_once_share_the_work(gateway: Gateway) -> None:
    await receive(gateway, 200, 4 * BATCH)
    counts: list[int] = []

    async def let_the_other_work(_: float) -> None:
        if not counts:
            counts.append((await Retention(gateway).forget())["callbacks"])

    counts.append((await Retention(gateway, let_the_other_work).forget())["callbacks"])
    assert counts == [3 * BATCH, BATCH]


async def test_what_waits_for_its_payment_stays_however_old(gateway: Gateway) -> None:
    await receive(gateway, 4000, 3, "waiting")
    await receive(gateway, 4000, 2, "unmatched")
    assert (await Retention(gateway).forget())["callbacks"] == 2
    assert await gateway.db.fetchval("SELECT count(*) FROM callback WHERE verdict = 'waiting'") == 3


async def test_nothing_goes_where_the_settings_keep_it_for_ever(values: dict[str, Any]) -> None:
    values |= {
        "worker": {"in_process": False},
        "plugins": ["callbacks"],
        "callbacks": {"keep_days": 0, "keep_refused_days": 0},
        "retention": {"idempotency_days": 0, "tasks_days": 0, "audit_days": 0},
    }
    del values["simulator"]
    async with Gateway(GatewayConfig.from_values(values), clock=SetClock(NOW)).running() as gateway:
        await receive(gateway, 9000, 5)
        assert await Retention(gateway).forget() == {}
        assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 5


async def test_what_postgres_has_no_time_for_is_left_to_the_next_night(
    gateway: Gateway, other: "asyncpg.Connection[Any]"
) -> None:
    await receive(gateway, 200, 5)
    await gateway.db.execute(
        "INSERT INTO refused_callback (refused_id, kind, at, source, reason, body) VALUES ($1, 'stk', $2, '', 'x', '')",
        Ids.least("ref", NOW - timedelta(days=60)) + "0" * 16,
        NOW - timedelta(days=60),
    )
    await other.execute(
        "CREATE FUNCTION tire() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'tired' USING ERRCODE = 'query_canceled'; END $$; "
        "CREATE TRIGGER tired BEFORE DELETE ON callback FOR EACH STATEMENT EXECUTE FUNCTION tire()"
    )
    counts = await Retention(gateway).forget()
    assert (counts["callbacks"], counts["refused callbacks"]) == (0, 1)
