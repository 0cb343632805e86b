"""Hourly counts of payments, updated every few seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from piccolo.query.functions import Max

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway_payments import stats_sql
from mpesa_gateway_payments.tables import PaymentStatsRow

log = structlog.get_logger(__name__)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOURS, DAYS = 24, 30

WAITS = (10, 20, 30, 60, 120)
"""Upper bounds in seconds of the classes of waiting times."""

_LATE = timedelta(minutes=5)
"""Longest delay until a change is visible: its transaction may be open."""

_FIRST = timedelta(days=2 * DAYS + 2)
"""Period of the first count."""


@dataclass(frozen=True, kw_only=True)
class PaymentStats:
    """Counts of one hour's or day's payments (East Africa Time). Amounts are in KES."""

    since: datetime
    asked: int = 0
    paid: int = 0
    failed: int = 0
    taken: int = 0
    returned: int = 0
    waits: tuple[int, ...] = (0,) * (len(WAITS) + 1)

    @property
    def is_open(self) -> int:
        return self.asked - self.paid - self.failed

    @property
    def rate(self) -> float | None:
        """Return the share of ended payments that were paid."""
        ended = self.paid + self.failed
        return self.paid / ended if ended else None

    def __add__(self, other: "PaymentStats") -> "PaymentStats":
        return PaymentStats(
            since=self.since,
            asked=self.asked + other.asked,
            paid=self.paid + other.paid,
            failed=self.failed + other.failed,
            taken=self.taken + other.taken,
            returned=self.returned + other.returned,
            waits=tuple(map(sum, zip(self.waits, other.waits, strict=True))),
        )


@dataclass(frozen=True, kw_only=True)
class StatsPeriod:
    """Counts of one env, oldest first; the last hour and day are incomplete.

    ``earlier`` are the days before ``days``; ``yesterday_so_far`` ends with the present hour. ``reasons`` are sorted by
    frequency.
    """

    env: Env
    hours: Sequence[PaymentStats]
    days: Sequence[PaymentStats]
    earlier: Sequence[PaymentStats]
    yesterday_so_far: PaymentStats
    reasons: Sequence[tuple[str, int]]
    counted_at: datetime


class PaymentStatsReader:
    """Counts payments by hour and reads the counts."""

    def __init__(self, *, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def count(self) -> int:
        """Recount each hour with a changed payment; return their number. Safe to run concurrently and repeatedly."""
        now = self._clock.now()
        last = await self._counted_at()
        since = now - _FIRST if last is None else last - _LATE
        tag = await self._db.execute(stats_sql.STATS, since, now, list(WAITS))
        counted = int(tag.rpartition(" ")[2])
        log.debug("payment_stats_updated", hours=counted)
        return counted

    async def read(self, env: Env, merchant_id: str | None = None) -> StatsPeriod | None:
        """None before the first payment."""
        now = self._clock.now().astimezone(EAT)
        this_hour = now.replace(minute=0, second=0, microsecond=0)
        today = this_hour.replace(hour=0)
        first = today - DAY * (DAYS - 1)
        oldest = first - DAY * DAYS
        counted_at = await self._counted_at()
        if merchant_id is None:
            rows = await self._db.fetch(stats_sql.STATS_BY_HOUR, env, oldest)
            reasons = await self._db.fetch(stats_sql.FAILURE_REASONS, first)
        else:
            rows = await self._db.fetch(stats_sql.STATS_BY_HOUR_OF, env, oldest, merchant_id)
            reasons = await self._db.fetch(stats_sql.FAILURE_REASONS_OF, env, first, merchant_id)
        if not rows or counted_at is None:
            return None
        known = {
            row["hour"].astimezone(EAT): PaymentStats(
                since=row["hour"].astimezone(EAT),
                asked=row["asked"],
                paid=row["paid"],
                failed=row["failed"],
                taken=row["taken"],
                returned=row["returned"],
                waits=tuple(row["waits"]),
            )
            for row in rows
        }
        days = {oldest + DAY * number: PaymentStats(since=oldest + DAY * number) for number in range(2 * DAYS)}
        yesterday = PaymentStats(since=today - DAY)
        for hour, figures in known.items():
            day = hour.replace(hour=0)
            if day in days:
                days[day] += figures
            if day == today - DAY and hour <= this_hour - DAY:
                yesterday += figures
        hours = [this_hour - HOUR * number for number in reversed(range(HOURS))]
        return StatsPeriod(
            env=env,
            hours=[known.get(hour, PaymentStats(since=hour)) for hour in hours],
            days=list(days.values())[DAYS:],
            earlier=list(days.values())[:DAYS],
            yesterday_so_far=yesterday,
            reasons=[(row["reason"], row["count"]) for row in reasons if row["env"] == env],
            counted_at=counted_at,
        )

    async def _counted_at(self) -> datetime | None:
        row = await self._db.run(PaymentStatsRow.select(Max(PaymentStatsRow.counted_at)).first())
        found: datetime | None = row["max"]
        return found
