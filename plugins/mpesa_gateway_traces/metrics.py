"""Metrics of the traces plugin."""

from prometheus_client import CollectorRegistry, Counter


class TracesMetrics:
    """Spans by outcome."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.spans = Counter(
            "mpesa_spans_total",
            "Spans that the collector accepted (sent) or rejected (refused), and those dropped at a full queue.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("sent", "dropped", "refused"):
            self.spans.labels(outcome)
