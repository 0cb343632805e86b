"""Protects the overview's figures: each hour is counted once, and again when one of its payments changes."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_payments import stats_sql
from mpesa_gateway_payments.stats import PaymentStatsReader, StatsPeriod
from tests.conftest import Harness
from tests.identifiers import expression, identifier

pytestmark = pytest.mark.as_owner

FILL = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, failure_reason, receipt, completed_at, expires_at,
    created_at, updated_at, due_at)
SELECT $2, $1, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), $3, 'KES', '254711000001', 'ROW', false,
    'Payment', id_text($2), $4, $5, $6, $8, now(), $7, $7, CASE WHEN $4 = 'pending' THEN now() + interval '1 day' END
"""

MANY = f"""
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, failure_reason, expires_at, created_at, updated_at)
SELECT {expression("pay", "at", "i")}, $1, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), 5, 'KES', '254711000001', 'ROW' || i, false,
    'Payment', 'many-' || i, 'failed', 'expired', now(), at, at
FROM (SELECT i, now() - (30000 - i) * interval '1 minute' AS at FROM generate_series(1, $2::integer) AS i) AS made
"""  # noqa: S608 - ids that the test chose


class PaymentWriter:
    """Inserts payments with past times."""

    def __init__(self, harness: Harness, merchant_id: str) -> None:
        self._harness = harness
        self._merchant_id = merchant_id
        self._number = 0

    async def write(self, at: datetime, amount: int, status: str, waits: float = 5, reason: str | None = None) -> str:
        """Insert a payment; returns its id."""
        self._number += 1
        payment_id, is_paid = identifier("pay", self._number, at=at), status == "completed"
        ended = at + timedelta(seconds=waits) if is_paid else None
        receipt = f"STATS{self._number:05d}" if is_paid else None
        db = self._harness.gateway.db
        await db.execute(FILL, self._merchant_id, payment_id, amount, status, reason, receipt, at, ended)
        return payment_id


async def count_now(harness: Harness) -> StatsPeriod:
    """Count now; returns the figures."""
    stats = harness.gateway.services.get(PaymentStatsReader)
    await stats.count()
    found = await stats.read("sandbox")
    assert found is not None
    return found


async def payment_writer(harness: Harness) -> PaymentWriter:
    return PaymentWriter(harness, (await harness.api.call("GET", "/v1/merchant/me")).data["id"])


async def test_stats_without_payments_is_none(harness: Harness) -> None:
    stats = harness.gateway.services.get(PaymentStatsReader)
    assert await stats.count() == 0
    assert await stats.read("sandbox") is None


async def test_stats_counts_each_payment_in_one_nairobi_day_and_hour(harness: Harness) -> None:
    now = harness.gateway.clock.now()
    midnight = now.astimezone(EAT).replace(hour=0, minute=0, second=0, microsecond=0)
    payments = await payment_writer(harness)
    written = (
        (midnight - timedelta(seconds=1), 70, "completed", 12.0, None),
        (now - timedelta(hours=30), 40, "failed", 0, "cancelled_by_user"),
        (now - timedelta(days=20), 900, "completed", 500.0, None),
        (now - timedelta(days=20), 60, "failed", 0, "insufficient_funds"),
        (now - timedelta(days=20), 50, "failed", 0, "cancelled_by_user"),
    )
    for at, amount, status, waits, reason in written:
        await payments.write(at, amount, status, waits, reason)
    found = await count_now(harness)
    days = {day.since: day for day in found.days}
    assert [day.since for day in found.days] == [midnight - timedelta(days=number) for number in range(29, -1, -1)]
    assert [hour.since for hour in found.hours] == [
        found.hours[-1].since - timedelta(hours=number) for number in range(23, -1, -1)
    ]
    assert found.hours[-1].since <= now < found.hours[-1].since + timedelta(hours=1)
    yesterday = days[midnight - timedelta(days=1)]
    assert yesterday.taken == 70
    assert yesterday.waits[1] == 1
    old = days[(now - timedelta(days=20)).astimezone(EAT).replace(hour=0, minute=0, second=0, microsecond=0)]
    assert (old.asked, old.paid, old.failed, old.taken) == (3, 1, 2, 900)
    assert old.waits == (0, 0, 0, 0, 0, 1)
    assert days[midnight].asked == sum(1 for at, *_ in written if at >= midnight)
    assert sum(day.asked for day in found.days) == len(written)
    assert found.reasons == [("cancelled_by_user", 2), ("insufficient_funds", 1)]
    assert old.rate == 1 / 3
    assert days[midnight - timedelta(days=25)].rate is None


async def test_read_returns_earlier_days_and_yesterday_until_this_hour(harness: Harness) -> None:
    now = harness.gateway.clock.now()
    hour = now.replace(minute=0, second=0, microsecond=0)
    payments = await payment_writer(harness)
    await payments.write(now - timedelta(days=40), 30, "completed", 5.0)
    await payments.write(hour - timedelta(days=1), 70, "completed", 5.0)
    await payments.write(hour - timedelta(hours=23), 200, "completed", 5.0)
    found = await count_now(harness)
    assert (len(found.earlier), sum(day.taken for day in found.earlier)) == (30, 30)
    assert found.earlier[-1].since + timedelta(days=1) == found.days[0].since
    assert found.yesterday_so_far.taken == 70


async def test_stats_of_a_payment_changed_later_stays_in_its_hour(harness: Harness) -> None:
    open_one = (await harness.api.pay("254700000006", 55, key="open")).data
    paid = (await harness.api.pay("254711000018", 60, key="paid")).data
    await harness.api.settled(paid["id"], "completed")
    first = (await count_now(harness)).days[-1]
    assert (first.asked, first.is_open, first.paid, first.taken, first.returned) == (2, 1, 1, 60, 0)
    await harness.gateway.db.execute(
        "UPDATE payment SET status = 'failed', failure_reason = 'expired', due_at = NULL, updated_at = $2 "
        "WHERE payment_id = $1",
        open_one["id"],
        harness.gateway.clock.now(),
    )
    later = await count_now(harness)
    assert (later.days[-1].asked, later.days[-1].is_open, later.days[-1].failed) == (2, 0, 1)
    assert later.reasons == [("expired", 1)]
    # Counting again changes nothing.
    assert (await count_now(harness)).days == later.days


async def test_stats_counts_changed_hours_only(harness: Harness) -> None:
    payments, stats = await payment_writer(harness), harness.gateway.services.get(PaymentStatsReader)
    now = harness.gateway.clock.now()
    for days in range(5):
        await payments.write(now - timedelta(days=days), 10, "completed")
    assert await stats.count() == 5
    assert await stats.count() == 1


async def test_stats_of_many_payments_reads_changed_ones_by_index(harness: Harness) -> None:
    db, now = harness.gateway.db, harness.gateway.clock.now()
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    await db.execute(MANY, merchant_id, 30_000)
    await db.execute("ANALYZE payment")
    rows = await db.fetch("EXPLAIN (COSTS OFF) " + _tally_sql(now - timedelta(minutes=5)))
    plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan" not in plan, plan
    assert "Bitmap Index Scan on payment_updated" in plan, plan
    # With one merchant, the primary key serves as well as the list's index.
    assert re.search("using payment_(newest|pkey) on payment payment_1", plan), plan


def _tally_sql(now: datetime) -> str:
    """The statement with its values in place, for EXPLAIN."""
    stamp = f"'{now.astimezone(UTC).isoformat()}'::timestamptz"
    values: dict[str, Any] = {"$1": stamp, "$2": stamp, "$3": "'{10,20,30,60,120}'"}
    return re.sub(r"\$[123]", lambda found: values[found[0]], stats_sql.STATS)


async def test_stats_job_counts(harness: Harness) -> None:
    await (await payment_writer(harness)).write(harness.gateway.clock.now(), 10, "completed")
    await harness.gateway.jobs.enqueue("payments.update_stats")

    async def is_counted() -> bool:
        return await harness.gateway.services.get(PaymentStatsReader).read("sandbox") is not None

    await eventually(is_counted)
