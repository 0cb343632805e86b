"""Metrics of payments: ended and open ones, and counts of the last hours."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.metrics.definitions import LONG_BUCKETS
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments import stats_sql, status_query_sql, tables
from mpesa_gateway_payments.result_codes import FAILURE_REASONS
from mpesa_gateway_payments.states import Status

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_WINDOWS = {"2h": _HOUR, "24h": _DAY - _HOUR}
"""Time between the start of a window and the start of the present hour."""


class PaymentMetrics:
    """Payments that ended, and their duration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter(
            "mpesa_payments_ended_total",
            "Payments that ended in this process: completed, or failed with a reason.",
            ("env", "outcome", "reason"),
            registry=registry,
        )
        self.result_seconds = Histogram(
            "mpesa_payment_result_seconds",
            "Time from the creation of a payment to its end.",
            ("env", "outcome"),
            buckets=LONG_BUCKETS,
            registry=registry,
        )
        for env in ENVS:
            self.ended.labels(env, "completed", "")
        for env, reason in product(ENVS, FAILURE_REASONS):
            self.ended.labels(env, "failed", reason)

    def count_ended(self, row: Mapping[str, Any], reason: str | None, at: datetime) -> None:
        outcome = (Status.COMPLETED if reason is None else Status.FAILED).value
        self.ended.labels(row["env"], outcome, reason or "").inc()
        self.result_seconds.labels(row["env"], outcome).observe((at - row["created_at"]).total_seconds())


def _window_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_payments",
            "Payments by time of creation (24h; 2h: this hour and the one before) and outcome: asked, paid, failed.",
            labels=("env", "window", "outcome"),
        ),
        GaugeMetricFamily(
            "mpesa_payments_failed", "Failed payments of these windows, by reason.", labels=("env", "window", "reason")
        ),
        GaugeMetricFamily(
            "mpesa_payments_taken_kes", "KES received for payments of these windows.", labels=("env", "window")
        ),
        GaugeMetricFamily(
            "mpesa_payments_returned_kes", "KES of these payments returned to payers.", labels=("env", "window")
        ),
    )


async def collect_windows(gateway: Runtime, gauges: Gauges) -> None:
    """The counts are some seconds old."""
    payments, failed, taken, returned = gauges
    this_hour = gateway.clock.now().replace(minute=0, second=0, microsecond=0)
    for window, back in _WINDOWS.items():
        rows = await gateway.db.fetch(stats_sql.STATS_BY_ENV, this_hour - back)
        by_env = {row["env"]: row for row in rows}
        for env in ENVS:
            row = by_env.get(env, _NOTHING)
            for outcome in ("asked", "paid", "failed"):
                payments.add_metric((env, window, outcome), row[outcome])
            taken.add_metric((env, window), row["taken"])
            returned.add_metric((env, window), row["returned"])
        for row in await gateway.db.fetch(stats_sql.FAILURE_REASONS, this_hour - back):
            failed.add_metric((row["env"], window, row["reason"]), row["count"])


_NOTHING = dict.fromkeys(("asked", "paid", "failed", "taken", "returned"), 0)


def _open_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_payments_open",
            "Payments that have not ended or have a pending status query; at most 10,000.",
            labels=("env",),
        ),
        GaugeMetricFamily(
            "mpesa_payments_oldest_open_seconds", "Age of the oldest open payment; 0 without one.", labels=("env",)
        ),
        GaugeMetricFamily(
            "mpesa_payments_needing_review",
            "Payments that need review: the money differs from the request.",
            labels=("env",),
        ),
        GaugeMetricFamily(
            "mpesa_status_answers_undecided",
            "Ambiguous status answers that no person has reviewed and whose receipt no payment has; at most 1,000.",
            labels=("env",),
        ),
    )


async def collect_open(gateway: Runtime, gauges: Gauges) -> None:
    open_payments, oldest, held, undecided = gauges
    for env in ENVS:
        row = await gateway.db.fetchrow(tables.COUNT_OPEN, env)
        open_payments.add_metric((env,), 0 if row is None else row["open"])
        oldest.add_metric((env,), seconds_since(None if row is None else row["oldest"], gateway.clock))
        held.add_metric((env,), await gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, [env]))
        undecided.add_metric((env,), await gateway.db.fetchval(status_query_sql.COUNT_UNDECIDED, env, None))


COLLECTORS = (Collector(_window_gauges, collect_windows), Collector(_open_gauges, collect_open))
