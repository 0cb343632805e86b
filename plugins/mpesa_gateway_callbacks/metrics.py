"""Metrics of callbacks."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.metrics.definitions import OTHER
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks import tables

REASONS = ("kind", "size", "source", "token", "signature", "shape", "doubled", "subject", "receiver")


class CallbackMetrics:
    """Callbacks by kind and verdict."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.callbacks = Counter(
            "mpesa_callbacks_total",
            "Callbacks by verdict: accepted, repeated, or refused with a reason.",
            ("kind", "verdict", "reason"),
            registry=registry,
        )


def label_values(kinds: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for kind in (*kinds, OTHER):
        yield kind, "accepted", ""
        yield kind, "repeated", ""
        for reason in REASONS:
            yield kind, "refused", reason


def _unmatched_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_callbacks_waiting",
            "Callbacks whose payment is not known yet; at most 10,000. A callback without a known env counts in both.",
            labels=("env",),
        ),
        GaugeMetricFamily(
            "mpesa_callbacks_oldest_waiting_seconds",
            "Age of the oldest waiting callback; 0 without one.",
            labels=("env",),
        ),
        GaugeMetricFamily(
            "mpesa_callbacks_unmatched",
            "Callbacks that matched no payment before their time to wait ended. A callback without a known env counts "
            "in both.",
            labels=("env",),
        ),
    )


async def collect_unmatched(gateway: Runtime, gauges: Gauges) -> None:
    waiting, oldest, unmatched = gauges
    for env in ENVS:
        row = await gateway.db.fetchrow(tables.COUNT_WAITING, env)
        waiting.add_metric((env,), 0 if row is None else row["waiting"])
        oldest.add_metric((env,), seconds_since(None if row is None else row["oldest"], gateway.clock))
        unmatched.add_metric((env,), await gateway.db.fetchval(tables.COUNT_UNMATCHED, env))


COLLECTORS = (Collector(_unmatched_gauges, collect_unmatched),)
