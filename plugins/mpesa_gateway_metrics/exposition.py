"""The text that Prometheus scrapes."""

import asyncio
from collections.abc import Iterator

import structlog
from prometheus_client import ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric

from mpesa_gateway.logs import trace
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_metrics.metrics import CollectionMetrics
from mpesa_gateway_metrics.settings import MetricsSettings

log = structlog.get_logger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_COLLECT_WITHIN = 5.0
"""Seconds for one collector. Prometheus ends a scrape after ten."""


class Exposition:
    """The metrics of a gateway as text."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._keep = runtime.settings(MetricsSettings).keep
        self._failed = runtime.metrics.get(CollectionMetrics).failed
        self._process = ProcessCollector(registry=None)
        self._collecting = asyncio.Lock()
        self._collected_at = float("-inf")
        self._gauges: list[Metric] = []

    async def text(self) -> bytes:
        """Return all metrics. Collectors run at most once in ``metrics.keep`` seconds."""
        async with self._collecting:
            now = asyncio.get_running_loop().time()
            if now - self._collected_at >= self._keep:
                self._gauges = await self._collect_all()
                self._collected_at = now
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        for metric in self._runtime.metrics.registry.collect():
            # Creation times would double a counter's series. The library's switch is for the whole process.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from self._process.collect()
        yield from self._gauges

    async def _collect_all(self) -> list[Metric]:
        self._failed.set(0)
        collectors = [collector for plugin in self._runtime.contributed(Plugin) for collector in plugin.collectors]
        # One at a time, on one connection, so that payments keep the others.
        return [gauge for collector in collectors for gauge in await self._collect(collector)]

    async def _collect(self, collector: Collector) -> Gauges:
        gauges = collector.gauges()
        try:
            async with asyncio.timeout(_COLLECT_WITHIN):
                await collector.collect(self._runtime, gauges)
        except Exception as problem:  # noqa: BLE001 - a failed collector does not stop the others
            self._failed.inc()
            log.warning("collector_failed", gauge=gauges[0].name, exception=trace(problem))
            return collector.gauges()
        return gauges
