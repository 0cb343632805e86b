"""Protects reconciliation at size: each statement reads a bounded number of rows, however much there was before."""

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway_reconciliation import matching_queries
from tests.identifiers import expression, identifier, literal
from tests.plugins.payments.test_lists_at_size import SHORTCODE, rows_read, steps

pytestmark = pytest.mark.as_owner

MANY = 10_000
"""Lines of one receiver and amount, one every ten minutes: 288 in 48 hours."""

OTHERS = 100
"""Later lines of another receiver."""

MOST = 700
"""The most rows that a step may read: the rows of 96 hours, and some more."""

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
LAST = FIRST + MANY * timedelta(minutes=10)

OTHER_RECEIVER = f"""
INSERT INTO receiver (receiver_id, env, number, kind, created_at)
VALUES ({literal("rcv", 2)}, 'sandbox', '600000', 'paybill', now())
"""  # noqa: S608 - ids that the test chose

# Money of payments, of many amounts, twice as often as unallocated money.
PAID = f"""
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, amount_cents, occurred_at,
    first_source, subject_kind, subject_id)
SELECT {expression("txn", "at", "n + 1000000")}, $1, 'sandbox', receiver_id, 'in', 'P' || lpad(n::text, 9, '0'),
    (1 + n % 100) * 10000, at, 'stk_callback', 'payment', {expression("pay", "at", "n")}
FROM receiver, (SELECT n, timestamptz '2026-01-01T00:00:00Z' + n * interval '5 minutes' AS at
    FROM generate_series(1, $2::bigint) AS n) AS times
WHERE number = '174379'
"""  # noqa: S608 - ids that the test chose

# One line in ten proves the zone.
FILL = f"""
WITH made AS (
    SELECT {expression("txn", "at", "n")} AS transaction_id, receiver_id, n, at
    FROM receiver, (SELECT n, timestamptz '2026-01-01T00:00:00Z' + n * interval '10 minutes' AS at
        FROM generate_series($3::bigint, $4::bigint) AS n) AS times
    WHERE number = $2
), moved AS (
    INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, amount_cents,
        occurred_at, first_source)
    SELECT transaction_id, $1, 'sandbox', receiver_id, 'in', 'S' || lpad(n::text, 9, '0'), 50000, at, 'pull' FROM made
)
INSERT INTO statement_note (transaction_id, receiver_id, merchant_id, env, moments, amount, amount_text, is_timed,
    is_of_till, finding, zone, asked_at, created_at)
SELECT transaction_id, receiver_id, $1, 'sandbox', ARRAY[at], 500, '500', true, false, 'ambiguous',
    CASE WHEN n % 10 = 0 THEN CASE $2 WHEN '174379' THEN 'eat' ELSE 'utc' END END, at, at
FROM made
"""  # noqa: S608 - ids that the test chose


@pytest.fixture
async def filled(values: dict[str, Any]) -> AsyncGenerator[tuple[Database, str]]:
    """Yield a database with many unallocated lines, and their merchant."""
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        db = gateway.db
        merchant_id = (await gateway.merchants.create("Large", actor="test")).merchant_id
        await db.execute(SHORTCODE, merchant_id)
        await db.execute(OTHER_RECEIVER)
        await db.execute(PAID, merchant_id, 2 * MANY)
        await db.execute(FILL, merchant_id, "174379", 1, MANY)
        await db.execute(FILL, merchant_id, "600000", MANY + 1, MANY + OTHERS)
        await db.execute("VACUUM (ANALYZE) transaction, statement_note, receiver")
        yield db, merchant_id


async def complaints(db: Database, sql: str, *values: Any, index: str) -> list[str]:
    """The faults of a statement's plans: the one for these values, and the one for any."""
    found: list[str] = []
    for mode in ("force_custom_plan", "force_generic_plan"):
        async with db.transaction():
            await db.execute(f"SET LOCAL plan_cache_mode = {mode}")
            rows = await db.fetch_planned("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + sql, *values)
        plan = list(steps(json.loads(rows[0][0])[0]["Plan"]))
        if index not in {step.get("Index Name") for step in plan}:
            found.append(f"{mode}: does not use {index}")
        found += [
            f"{mode}: {step['Node Type']} {step.get('Relation Name', '')} reads {rows_read(step):.0f} rows"
            for step in plan
            if rows_read(step) > MOST
        ]
    return found


async def test_unallocated_money_is_read_from_its_time_on(filled: tuple[Database, str]) -> None:
    db, _ = filled
    given = "sandbox", ["174379"], [500], [LAST - timedelta(hours=5)]
    assert await complaints(db, matching_queries.UNALLOCATED, *given, index="transaction_unallocated") == []
    assert len(await db.fetch(matching_queries.UNALLOCATED, *given)) == 31
    # Counter-test: without the bound, all money ever of the receiver and amount is read.
    unbounded = matching_queries.UNALLOCATED.replace("interval '48 hours'", "interval '48 months'")
    assert await complaints(db, unbounded, *given, index="transaction_unallocated")


async def test_money_noted_up_to_48_hours_after_its_record_is_found(filled: tuple[Database, str]) -> None:
    db, _ = filled
    early = LAST - timedelta(hours=47)
    number = MANY - 47 * 6
    await db.execute(
        "UPDATE statement_note SET created_at = $2 WHERE transaction_id = $1", identifier("txn", number, at=early), LAST
    )
    found = await db.fetch(matching_queries.UNALLOCATED, "sandbox", ["174379"], [500], [LAST])
    assert sorted(row["receipt"] for row in found) == [f"S{number:09}", f"S{MANY:09}"]


async def test_lines_like_an_answered_one_are_read_from_its_time_on(filled: tuple[Database, str]) -> None:
    db, merchant_id = filled
    line_id = identifier("txn", MANY, at=LAST)
    given = "sandbox", "174379", 500, line_id, merchant_id, LAST - timedelta(hours=48)
    assert await complaints(db, matching_queries.OPEN_LIKE, *given, index="transaction_unallocated") == []
    found = [row["line_id"] for row in await db.fetch(matching_queries.OPEN_LIKE, *given)]
    assert found == [identifier("txn", n, at=FIRST + n * timedelta(minutes=10)) for n in range(MANY - 99, MANY + 1)]


async def test_proofs_of_a_zone_are_read_by_their_receiver(filled: tuple[Database, str]) -> None:
    db, _ = filled
    for number, zone in (("174379", "eat"), ("600000", "utc")):
        given = "sandbox", number
        assert await complaints(db, matching_queries.ZONES, *given, index="statement_note_zone") == []
        assert [row["zone"] for row in await db.fetch(matching_queries.ZONES, *given)] == [zone] * 5
    assert await db.fetch(matching_queries.ZONES, "live", "174379") == []
    # Not one row of the transactions is read.
    rows = await db.fetch_planned("EXPLAIN (FORMAT JSON) " + matching_queries.ZONES, "sandbox", "174379")
    read = {step.get("Relation Name") for step in steps(json.loads(rows[0][0])[0]["Plan"])}
    assert read - {None} == {"statement_note", "receiver"}
