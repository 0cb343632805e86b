"""Metrics of the metrics plugin."""

from prometheus_client import CollectorRegistry, Gauge


class CollectionMetrics:
    """Failed collectors."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failed = Gauge(
            "mpesa_collectors_failed",
            "Collectors that failed at the last collection; their gauges have no values.",
            registry=registry,
        )
