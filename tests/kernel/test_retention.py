"""Protects retention: rows are deleted in small batches that lock out no other process."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.ids import Ids
from mpesa_gateway.retention import KERNEL_RETENTION, Retention
from mpesa_gateway.testing.serving import eventually
from tests.identifiers import identifier

pytestmark = pytest.mark.as_owner

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
BATCH = 500
ROWS = 100_000

CALLBACKS = """
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, subject_id, handle, result_code, stored_body,
    verdict, applied_at, due_at)
SELECT (left($1::uuid::text, 24) || lpad(to_hex(number), 12, '0'))::uuid, 'stk',
    substr(sha256(($1::uuid::text || number || $4)::bytea), 1, 16), $2::timestamptz, '127.0.0.1', NULL, '', '0',
    '{}', $4::text,
    CASE WHEN $4 = 'applied' THEN $2::timestamptz END, CASE WHEN $4 = 'waiting' THEN $2::timestamptz END
FROM generate_series($5::integer + 1, $5 + $3::integer) number
"""


@pytest.fixture
async def gateway(values: dict[str, Any]) -> AsyncGenerator[Gateway]:
    """Yield a gateway without a worker, with a fixed clock."""
    values |= {"worker": {"in_process": False}, "retention": {"batch": BATCH}}
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    del values["simulator"]
    async with Gateway(GatewayConfig.from_values(values), clock=SetClock(NOW)).running() as gateway:
        yield gateway


@pytest.fixture
async def other(gateway: Gateway, database_url: str) -> AsyncGenerator["asyncpg.Connection[Any]"]:
    """Yield a connection of another process."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        database_url, server_settings={"search_path": gateway.config.database.schema}
    )
    await read_ids(connection)
    yield connection
    await connection.close()


async def receive(gateway: Gateway, days: int, count: int, verdict: str = "applied") -> str:
    """Insert callbacks received ``days`` ago; return an identifier less than theirs."""
    at = NOW - timedelta(days=days)
    prefix = Ids.least("cbk", at)
    there: int = await gateway.db.fetchval("SELECT count(*) FROM callback")
    await gateway.db.execute(CALLBACKS, prefix, at, count, verdict, there)
    return prefix


async def test_retention_deletes_a_hundred_thousand_rows_in_batches_without_locks_in_between(
    gateway: Gateway, other: "asyncpg.Connection[Any]"
) -> None:
    old = await receive(gateway, 200, ROWS)
    young = await receive(gateway, 100, 10)
    left: list[int] = []

    async def pause(seconds: float) -> None:
        """Between two batches, others see the last one deleted and can lock all other rows."""
        assert seconds == gateway.config.retention.pause
        left.append(await other.fetchval("SELECT count(*) FROM callback WHERE callback_id < $1", young))
        if len(left) % 20 == 1:
            async with other.transaction():
                locked = await other.execute("SELECT FROM callback FOR UPDATE NOWAIT")
            assert locked == f"SELECT {left[-1] + 10}"

    counts = await Retention(gateway, pause).delete_expired()
    assert counts["callbacks"] == ROWS
    assert left == list(range(ROWS - BATCH, -1, -BATCH))
    assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 10
    assert old < young


async def test_retention_batches_are_served_by_an_index_in_order(gateway: Gateway) -> None:
    plans: dict[str, str] = {}
    for forgetting in (*KERNEL_RETENTION, *(one for plugin in gateway.plugins for one in plugin.retention)):
        oldest = Ids.least(forgetting.prefix, NOW) if forgetting.prefix else NOW
        async with gateway.db.transaction():
            # If there is an index, Postgres now uses it even for few rows.
            await gateway.db.execute("SET LOCAL enable_seqscan = off")
            await gateway.db.execute("SET LOCAL enable_bitmapscan = off")
            await gateway.db.execute("SET LOCAL enable_hashjoin = off")
            await gateway.db.execute("SET LOCAL enable_mergejoin = off")
            await gateway.db.execute("SET LOCAL enable_sort = off")
            rows = await gateway.db.fetch(f"EXPLAIN {forgetting.sql}", oldest, BATCH)
        plans[forgetting.what] = "\n".join(row[0] for row in rows)
    assert len(plans) == 11
    assert {what: plan for what, plan in plans.items() if "Seq Scan" in plan or "Sort" in plan} == {}
    # References to a row are found by an index.
    assert "refused_callback_became" in plans["callbacks"]
    assert "reconciliation_line_transaction" in plans["statement lines"]
    assert "delivery_answered" in plans["answers to deliveries"]


async def test_retention_runs_as_a_cron_job_at_night(values: dict[str, Any]) -> None:
    values["plugins"] = ["callbacks"]
    del values["simulator"]
    async with Gateway(GatewayConfig.from_values(values), clock=SetClock(NOW)).running() as gateway:
        await receive(gateway, 200, 3)
        job = gateway.jobs_by_name["kernel.forget"]
        assert (job.cron, job.timeout) == ("17 23 * * *", 3600)
        await gateway.jobs.enqueue("kernel.forget")

        async def is_done() -> bool:
            return not await gateway.db.fetchval("SELECT count(*) FROM callback")

        await eventually(is_done)


async def test_retention_keeps_idempotency_keys_in_flight(gateway: Gateway) -> None:
    merchant_id = (await gateway.merchants.create("Duka", actor="test")).merchant_id
    old = NOW - timedelta(days=91)
    for number, (state, until, created_at) in enumerate(
        (
            ("in_flight", NOW + timedelta(minutes=1), old),
            ("in_flight", old, old),
            ("settled", old, old),
            ("settled", old, old + timedelta(days=2)),
        )
    ):
        await gateway.db.execute(
            "INSERT INTO idempotency_key (merchant_id, env, digest, fingerprint, state, subject_id, leased_until, "
            "created_at) VALUES ($1, 'sandbox', gen_random_uuid(), substr(sha256('a'), 1, 16), $2, $5, $3, $4)",
            merchant_id,
            state,
            until,
            created_at,
            identifier("own", number),
        )
    assert (await Retention(gateway).delete_expired())["idempotency keys"] == 2
    rows = await gateway.db.fetch("SELECT subject_id FROM idempotency_key ORDER BY subject_id")
    assert [row["subject_id"] for row in rows] == [identifier("own", 0), identifier("own", 3)]


async def test_retention_keeps_open_subscriber_tasks(gateway: Gateway) -> None:
    at = NOW - timedelta(days=31)
    event_id = Ids.least("evt", at)
    await gateway.db.execute(
        "INSERT INTO event (event_id, kind, subject_id, occurred_at, is_public, payload) "
        "VALUES ($1, 'own.done', $3, $2, false, '{}')",
        event_id,
        at,
        identifier("own"),
    )
    await gateway.db.execute(
        "INSERT INTO event_task (event_id, subscriber, due_at, done_at) "
        "VALUES ($1, 'heard', $2, $2), ($1, 'owed', $2, NULL)",
        event_id,
        at,
    )
    assert (await Retention(gateway).delete_expired())["subscribers' done tasks"] == 1
    assert await gateway.db.fetchval("SELECT subscriber FROM event_task") == "owed"


@pytest.mark.parametrize("days", [1, 2])
async def test_retention_of_statement_lines_below_three_days_is_refused(values: dict[str, Any], days: int) -> None:
    values["reconciliation"] = {"keep_days": days}
    with pytest.raises(ConfigError, match="at least 3"):
        Gateway(GatewayConfig.from_values(values))


async def test_retention_skips_locked_rows_until_the_next_run(
    gateway: Gateway, other: "asyncpg.Connection[Any]"
) -> None:
    await receive(gateway, 200, 2 * BATCH)
    fourth = identifier("cbk", 4, at=NOW - timedelta(days=200))
    async with other.transaction():
        await other.execute("SELECT FROM callback WHERE callback_id < $1 FOR UPDATE", fourth)
        # If it waited for these three rows, which are the oldest, it would never end.
        assert (await Retention(gateway).delete_expired())["callbacks"] == 2 * BATCH - 3
    assert (await Retention(gateway).delete_expired())["callbacks"] == 3


async def test_retention_by_two_processes_shares_the_work(gateway: Gateway) -> None:
    await receive(gateway, 200, 4 * BATCH)
    counts: list[int] = []

    async def let_the_other_work(_: float) -> None:
        if not counts:
            counts.append((await Retention(gateway).delete_expired())["callbacks"])

    counts.append((await Retention(gateway, let_the_other_work).delete_expired())["callbacks"])
    assert counts == [3 * BATCH, BATCH]


async def test_retention_keeps_waiting_callbacks(gateway: Gateway) -> None:
    await receive(gateway, 4000, 3, "waiting")
    await receive(gateway, 4000, 2, "unmatched")
    assert (await Retention(gateway).delete_expired())["callbacks"] == 2
    assert await gateway.db.fetchval("SELECT count(*) FROM callback WHERE verdict = 'waiting'") == 3


async def test_retention_without_a_limit_deletes_nothing(values: dict[str, Any]) -> None:
    values |= {
        "worker": {"in_process": False},
        "plugins": ["callbacks"],
        "callbacks": {"keep_days": 0, "keep_refused_days": 0},
        "retention": {"idempotency_days": 0, "tasks_days": 0, "audit_days": 0},
    }
    del values["simulator"]
    async with Gateway(GatewayConfig.from_values(values), clock=SetClock(NOW)).running() as gateway:
        await receive(gateway, 9000, 5)
        assert await Retention(gateway).delete_expired() == {}
        assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 5


async def test_retention_that_times_out_continues_with_the_next_table(
    gateway: Gateway, other: "asyncpg.Connection[Any]"
) -> None:
    await receive(gateway, 200, 5)
    await gateway.db.execute(
        "INSERT INTO refused_callback (refused_id, kind, at, source, reason, body) VALUES ($1, 'stk', $2, '', 'x', '')",
        Ids.least("ref", NOW - timedelta(days=60)),
        NOW - timedelta(days=60),
    )
    await other.execute(
        "CREATE FUNCTION tire() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'tired' USING ERRCODE = 'query_canceled'; END $$; "
        "CREATE TRIGGER tired BEFORE DELETE ON callback FOR EACH STATEMENT EXECUTE FUNCTION tire()"
    )
    counts = await Retention(gateway).delete_expired()
    assert (counts["callbacks"], counts["refused callbacks"]) == (0, 1)
