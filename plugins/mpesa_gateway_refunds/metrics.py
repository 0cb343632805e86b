"""Gauges of refunds."""

from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds import tables


def _refund_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_refunds_open", "Refunds whose result M-Pesa has not reported; at most 10,000.", labels=("env",)
        ),
        GaugeMetricFamily(
            "mpesa_refunds_oldest_open_seconds", "Age of the oldest open refund; 0 without one.", labels=("env",)
        ),
        GaugeMetricFamily("mpesa_refunds_needing_review", "Refunds that need review.", labels=("env",)),
    )


async def collect_refunds(gateway: Runtime, gauges: Gauges) -> None:
    open_refunds, oldest, needing_review = gauges
    for env in ENVS:
        row = await gateway.db.fetchrow(tables.COUNT_OPEN, env)
        open_refunds.add_metric((env,), 0 if row is None else row["open"])
        oldest.add_metric((env,), seconds_since(None if row is None else row["oldest"], gateway.clock))
        needing_review.add_metric((env,), await gateway.db.run(tables.waiting_of(env)))


COLLECTORS = (Collector(_refund_gauges, collect_refunds),)
