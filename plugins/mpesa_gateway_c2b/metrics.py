"""Metrics of c2b."""

from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b import tables

_RECENT = timedelta(hours=24)

ANSWERS = ("accepted", "C2B00011", "C2B00012", "C2B00013", "C2B00014", "C2B00015", "C2B00016")


class C2bMetrics:
    """Answers to validation requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.validations = Counter(
            "mpesa_c2b_validations_total",
            "Validation requests by answer: accepted, or a refusal's code; in doubt, Postgres did not respond in time.",
            ("answer", "doubt"),
            registry=registry,
        )
        for answer in ANSWERS:
            for doubt in ("no", "yes") if answer in {"accepted", "C2B00016"} else ("no",):
                self.validations.labels(answer, doubt)


def _gauges() -> Gauges:
    text = "Unallocated payments of 24 hours to registered shortcodes that Pull alone has seen; at most 1,000 for each."
    return (GaugeMetricFamily("mpesa_c2b_unconfirmed", text, labels=("env",)),)


async def collect_unconfirmed(gateway: Runtime, gauges: Gauges) -> None:
    (unconfirmed,) = gauges
    rows = await gateway.db.fetch(tables.COUNT_UNCONFIRMED, gateway.clock.now() - _RECENT, None)
    counts = {row["env"]: row["count"] for row in rows}
    for env in ENVS:
        unconfirmed.add_metric((env,), counts.get(env, 0))


COLLECTORS = (Collector(_gauges, collect_unconfirmed),)
