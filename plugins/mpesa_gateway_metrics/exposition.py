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

COLLECT_WITHIN = 5.0
"""Seconds for all collectors together. Prometheus ends a scrape after ten."""

_EACH_WITHIN = 2.0
"""Seconds for one collector that reads from Postgres, so that one slow query leaves time for the others."""


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
        self._running: dict[int, asyncio.Task[Gauges]] = {}
        self._one_connection = asyncio.Semaphore(1)

    async def text(self) -> bytes:
        """Return all metrics. Collectors run at most once in ``metrics.keep`` seconds."""
        async with self._collecting:
            loop = asyncio.get_running_loop()
            if loop.time() - self._collected_at >= self._keep:
                self._gauges = await self._collect_all()
                self._collected_at = loop.time()
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        for metric in self._runtime.metrics.registry.collect():
            # Creation times would double a counter's series. The library's switch is for the whole process.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from self._process.collect()
        yield from self._gauges

    async def _collect_all(self) -> list[Metric]:
        collectors = [collector for plugin in self._runtime.contributed(Plugin) for collector in plugin.collectors]
        for number, collector in enumerate(collectors):
            # A cancelled query ends late while Postgres hangs: it keeps its connection, and no other starts.
            if (task := self._running.get(number)) is None or _has_ended(task):
                self._running[number] = asyncio.create_task(self._collect(collector))
        await asyncio.wait(self._running.values(), timeout=COLLECT_WITHIN)
        self._failed.set(0)
        return [gauge for number, collector in enumerate(collectors) for gauge in self._end(number, collector)]

    async def _collect(self, collector: Collector) -> Gauges:
        gauges = collector.gauges()
        if collector.reads_postgres:
            async with self._one_connection, asyncio.timeout(_EACH_WITHIN):
                await collector.collect(self._runtime, gauges)
        else:
            await collector.collect(self._runtime, gauges)
        return gauges

    def _end(self, number: int, collector: Collector) -> Gauges:
        task = self._running[number]
        problem: BaseException = TimeoutError(f"not collected within {COLLECT_WITHIN:g} seconds")
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            failure = task.exception()
            if failure is None:
                return task.result()
            problem = failure
        gauges = collector.gauges()
        if collector.fail is not None:
            collector.fail(gauges)
        else:
            self._failed.inc()
            log.warning("collector_failed", gauge=gauges[0].name, exception=trace(problem))
        return gauges


def _has_ended(task: "asyncio.Task[Gauges]") -> bool:
    if not task.done():
        return False
    if not task.cancelled():
        task.exception()  # Otherwise asyncio logs it as never retrieved.
    return True
