"""Metrics of webhooks."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.metrics.definitions import SHORT_BUCKETS
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks.operator_service import WebhookOperatorService


class WebhookMetrics:
    """Attempts by outcome, and their duration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.attempts = Counter(
            "mpesa_webhook_attempts_total",
            "Attempts at a delivery, by outcome: delivered, failed (retried later), dead (the last attempt).",
            ("outcome",),
            registry=registry,
        )
        self.attempt_seconds = Histogram(
            "mpesa_webhook_attempt_seconds",
            "Time that endpoints took to respond.",
            buckets=SHORT_BUCKETS,
            registry=registry,
        )
        for outcome in ("delivered", "failed", "dead"):
            self.attempts.labels(outcome)


def _delivery_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_webhooks_pending", "Deliveries that no endpoint has accepted yet; at most 10,000.", labels=("env",)
        ),
        GaugeMetricFamily(
            "mpesa_webhooks_oldest_pending_seconds",
            "Age of the oldest of these deliveries; 0 without one.",
            labels=("env",),
        ),
        GaugeMetricFamily(
            "mpesa_webhooks_dead",
            "Deliveries of the last day without attempts left; at most 1,000 of each merchant.",
            labels=("env",),
        ),
    )


async def collect_deliveries(gateway: Runtime, gauges: Gauges) -> None:
    pending, oldest, dead = gauges
    operators = gateway.port(WebhookOperatorService)
    for env in ENVS:
        count, since = await operators.owed(env)
        pending.add_metric((env,), count)
        oldest.add_metric((env,), seconds_since(since, gateway.clock))
        dead.add_metric((env,), await operators.count_dead(env))


COLLECTORS = (Collector(_delivery_gauges, collect_deliveries),)
