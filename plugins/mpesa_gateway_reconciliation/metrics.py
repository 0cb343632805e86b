"""Metrics of reconciliation: runs, and findings that need review."""

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_reconciliation import tables

FINDINGS = ("not_found", "mismatched", "ambiguous")


class ReconciliationMetrics:
    """Reconciliation runs by status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs = Counter(
            "mpesa_reconciliation_runs_total",
            "Reconciliation runs that ended in this process, by status: completed, failed.",
            ("status",),
            registry=registry,
        )
        for status in ("completed", "failed"):
            self.runs.labels(status)


def _finding_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_reconciliation_unresolved",
            "Statement lines that need review, by finding; at most the newest 1,000 of each merchant.",
            labels=("env", "finding"),
        ),
        GaugeMetricFamily(
            "mpesa_reconciliation_failing_merchants",
            "Merchants whose last reconciliation run failed.",
            labels=("env",),
        ),
    )


async def collect_findings(gateway: Runtime, gauges: Gauges) -> None:
    unresolved, failing = gauges
    rows = await gateway.db.fetch(tables.COUNT_UNRESOLVED_BY_FINDING)
    counts = {(row["env"], row["finding"]): row["count"] for row in rows}
    for env in ENVS:
        for finding in FINDINGS:
            unresolved.add_metric((env, finding), counts.get((env, finding), 0))
        failing.add_metric((env,), await gateway.db.fetchval(tables.COUNT_FAILING, [env], None))


COLLECTORS = (Collector(_finding_gauges, collect_findings),)
