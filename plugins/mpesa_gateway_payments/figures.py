"""The overview's figures of payments: today's money, how many are paid and how soon, why others are not."""

from mpesa_gateway.http.charts import Column, Series
from mpesa_gateway.pages import Shown, Visit
from mpesa_gateway_payments.tally import HOUR, WAITS, Figures, PaymentTally

COUNTS = (Series("good", "paid"), Series("wait", "pending"), Series("bad", "failed"))
MONEY = (Series("good", "KES"),)

_SOON = 3
"""Classes of waits that are at most half a minute long."""

_WAIT_LABELS = (
    *(f"{start} to {end} s" for start, end in zip((0, *WAITS), WAITS, strict=False)),
    f"over {WAITS[-1]} s",
)

_LABELLED = 6
"""One column in so many has its hour, or its day, under it."""


async def figures(visit: Visit, _: str) -> Shown | None:
    """What one asks in the morning: is money coming in as it should?"""
    tallied = await visit.gateway.port(PaymentTally).read(visit.env)
    if tallied is None:
        return Shown("figures.html", {"tallied": None})
    today, lately = tallied.days[-1], sum(tallied.hours[1:], tallied.hours[0])
    return Shown(
        "figures.html",
        {
            "tallied": tallied,
            "today": today,
            "rate": lately.rate,
            "soon": sum(lately.waits[:_SOON]) / lately.paid if lately.paid else None,
            "by_hour": [_counts(figures, number) for number, figures in enumerate(tallied.hours)],
            "by_day": [_money(figures, number) for number, figures in enumerate(tallied.days)],
            "waits": list(zip(_WAIT_LABELS, lately.waits, strict=True)),
            "reasons": [(reason.replace("_", " "), count) for reason, count in tallied.reasons],
            "counts": COUNTS,
            "money": MONEY,
        },
    )


def _counts(figures: Figures, number: int) -> Column:
    at = figures.since
    label = f"{at:%H:%M}" if number % _LABELLED == 0 else ""
    name = f"{at.day} {at:%b}, {at:%H:%M} to {at + HOUR:%H:%M}"
    return Column(label, name, (figures.paid, figures.is_open, figures.failed))


def _money(figures: Figures, number: int) -> Column:
    at = figures.since
    label = f"{at.day} {at:%b}" if number % _LABELLED == 0 else ""
    return Column(label, f"{at:%A}, {at.day} {at:%B}", (figures.taken,))
