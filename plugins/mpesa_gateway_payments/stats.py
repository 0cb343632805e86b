"""How payments do, hour by hour: counted beside them every few seconds, so that looking at it costs next to nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from piccolo.query.functions import Max

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway_payments import stats_sql
from mpesa_gateway_payments.tables import PaymentTallyRow

log = structlog.get_logger(__name__)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOURS, DAYS = 24, 30

WAITS = (10, 20, 30, 60, 120)
"""Seconds from asking to money at which one class of waits ends and the next begins."""

_LATE = timedelta(minutes=5)
"""A change may become visible so much later than its time says: its transaction was still open."""

_FIRST = timedelta(days=2 * DAYS + 2)
"""How far back the first count of all goes."""


@dataclass(frozen=True, kw_only=True)
class PaymentStats:
    """Payments that were asked for in one hour or day, in East Africa Time. Amounts are in KES."""

    since: datetime
    asked: int = 0
    paid: int = 0
    failed: int = 0
    taken: int = 0
    returned: int = 0
    waits: tuple[int, ...] = (0,) * (len(WAITS) + 1)

    @property
    def is_open(self) -> int:
        """Those that have not ended."""
        return self.asked - self.paid - self.failed

    @property
    def rate(self) -> float | None:
        """The share of those that ended which were paid, None where none has ended."""
        ended = self.paid + self.failed
        return self.paid / ended if ended else None

    def __add__(self, other: "PaymentStats") -> "PaymentStats":
        """Both together, since this one's beginning."""
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
    """The figures of one environment: hours and days from the oldest to the present one, which is not over.

    ``earlier`` are the days before ``days``, ``yesterday_so_far`` the hours of yesterday until the present hour ends.
    ``reasons`` says why payments of these days failed, the most frequent first; ``counted_at`` how new all of it is.
    """

    env: Env
    hours: Sequence[PaymentStats]
    days: Sequence[PaymentStats]
    earlier: Sequence[PaymentStats]
    yesterday_so_far: PaymentStats
    reasons: Sequence[tuple[str, int]]
    counted_at: datetime


class PaymentStatsReader:
    """Counts payments, and gives what was counted."""

    def __init__(self, *, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def count(self) -> int:
        """Count again each hour of which a payment has changed since the last time; gives how many that were.

        Two at once count the same, and so does one that is repeated.
        """
        now = self._clock.now()
        last = await self._counted_at()
        since = now - _FIRST if last is None else last - _LATE
        tag = await self._db.execute(stats_sql.TALLY, since, now, list(WAITS))
        counted = int(tag.rpartition(" ")[2])
        log.debug("payment_stats_updated", hours=counted)
        return counted

    async def read(self, env: Env) -> StatsPeriod | None:
        """The last hours and days of ``env``; None before its first payment."""
        now = self._clock.now().astimezone(EAT)
        this_hour = now.replace(minute=0, second=0, microsecond=0)
        today = this_hour.replace(hour=0)
        first = today - DAY * (DAYS - 1)
        oldest = first - DAY * DAYS
        counted_at = await self._counted_at()
        rows = await self._db.fetch(stats_sql.TALLIED, env, oldest)
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
            reasons=[
                (row["reason"], row["count"])
                for row in await self._db.fetch(stats_sql.TALLIED_REASONS, first)
                if row["env"] == env
            ],
            counted_at=counted_at,
        )

    async def _counted_at(self) -> datetime | None:
        """When payments were counted last."""
        row = await self._db.run(PaymentTallyRow.select(Max(PaymentTallyRow.counted_at)).first())
        found: datetime | None = row["max"]
        return found
