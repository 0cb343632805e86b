"""The overview's panel of payments."""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.http.charts import Column, Series
from mpesa_gateway.ops_contract import PageRequest, Rendered
from mpesa_gateway_payments.stats import DAY, HOUR, WAITS, PaymentStats, PaymentStatsReader, StatsPeriod

COUNTS = (Series("good", "paid"), Series("wait", "pending"), Series("bad", "failed"))
MONEY = (Series("good", "KES"),)

_SOON = 3
"""Classes of waiting times up to 30 seconds."""

_WAIT_LABELS = (
    *(f"{start} to {end} s" for start, end in zip((0, *WAITS), WAITS, strict=False)),
    f"over {WAITS[-1]} s",
)

_LABELLED = 6
"""Every n-th column has a label."""


async def figures(visit: PageRequest, _: str) -> Rendered | None:
    stats = await visit.gateway.port(PaymentStatsReader).read(visit.env, visit.merchant_id)
    if stats is None:
        return Rendered("figures.html", {"stats": None})
    last_day = sum(stats.hours[1:], stats.hours[0])
    return Rendered(
        "figures.html",
        {
            "stats": stats,
            "periods": _periods(stats),
            "rate": last_day.rate,
            "soon": sum(last_day.waits[:_SOON]) / last_day.paid if last_day.paid else None,
            "by_hour": [_counts(figures, number) for number, figures in enumerate(stats.hours)],
            "by_day": [_money(figures, number) for number, figures in enumerate(stats.days)],
            "waits": list(zip(_WAIT_LABELS, last_day.waits, strict=True)),
            "reasons": [(reason.replace("_", " "), count) for reason, count in stats.reasons],
            "counts": COUNTS,
            "money": MONEY,
        },
    )


@dataclass(frozen=True)
class Period:
    """The money of some days and of the days before, with a link to the payments."""

    name: str
    figures: PaymentStats
    until: datetime
    before: str
    earlier: PaymentStats

    @property
    def query(self) -> str:
        since, until = rfc3339(self.figures.since), rfc3339(self.until)
        return urlencode({"since": since, "until": until})

    @property
    def change(self) -> float | None:
        """Return the share of the earlier money; None if that is 0."""
        return (self.figures.taken - self.earlier.taken) / self.earlier.taken if self.earlier.taken else None


def _periods(stats: StatsPeriod) -> list[Period]:
    days = [*stats.earlier, *stats.days]
    tomorrow = days[-1].since + DAY
    until = (stats.hours[-1].since + HOUR).strftime("%H:%M")
    return [
        Period("Today", days[-1], tomorrow, f"yesterday until {until}", stats.yesterday_so_far),
        Period("Yesterday", days[-2], days[-1].since, "the day before", days[-3]),
        *(
            Period(
                f"{count} days",
                sum(days[1 - count :], days[-count]),
                tomorrow,
                f"the {count} days before",
                sum(days[1 - 2 * count : -count], days[-2 * count]),
            )
            for count in (7, 30)
        ),
    ]


def _counts(figures: PaymentStats, number: int) -> Column:
    at = figures.since
    label = f"{at:%H:%M}" if number % _LABELLED == 0 else ""
    name = f"{at.day} {at:%b}, {at:%H:%M} to {at + HOUR:%H:%M}"
    return Column(label, name, (figures.paid, figures.is_open, figures.failed))


def _money(figures: PaymentStats, number: int) -> Column:
    at = figures.since
    label = f"{at.day} {at:%b}" if number % _LABELLED == 0 else ""
    return Column(label, f"{at:%A}, {at.day} {at:%B}", (figures.taken,))
