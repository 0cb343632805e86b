"""Gauge of reports that contradict recorded money."""

from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.contradictions import COUNT


def _gauges() -> Gauges:
    text = "Reports that contradict the first report of their receipt and need review; at most 1,000."
    return (GaugeMetricFamily("mpesa_transactions_contradicted", text, labels=("env",)),)


async def collect_contradictions(gateway: Runtime, gauges: Gauges) -> None:
    (contradicted,) = gauges
    for env in ENVS:
        contradicted.add_metric((env,), await gateway.db.fetchval(COUNT, env))


CONTRADICTIONS = Collector(_gauges, collect_contradictions)
