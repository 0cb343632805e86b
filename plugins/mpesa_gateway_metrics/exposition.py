"""What is shown: the process's own counts and times, and what was read from Postgres and Valkey a moment ago."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mpesa_gateway.logs import trace
from mpesa_gateway.meter import Gauge, Value
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.standing import READINGS
from mpesa_gateway_metrics.settings import MetricsSettings

log = structlog.get_logger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""What Prometheus calls its text."""

_PATIENCE = 5.0
"""Seconds that one reading may take; Prometheus itself gives up after ten."""

UNREAD = Gauge("mpesa_readings_failed", "Groups of figures that could not be read this time, and are missing here.")


class Exposition:
    """One gateway's metrics as text, from a registry of its own."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._keep = runtime.settings(MetricsSettings).keep
        self._readings: Sequence[Reading] = [
            *READINGS,
            *(reading for plugin in runtime.contributed(Plugin) for reading in plugin.readings),
        ]
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._values: list[Value] = []
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Families(self))

    @property
    def gauges(self) -> Iterator[Gauge]:
        """Every gauge that may be shown."""
        yield UNREAD
        for reading in self._readings:
            yield from reading.gauges

    async def text(self) -> bytes:
        """All of it. However many ask, and however often, what is read is read once in ``metrics.keep`` seconds."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at >= self._keep:
                self._values = await self._read()
                self._read_at = now
        return generate_latest(self._registry)

    async def _read(self) -> list[Value]:
        # One after the other: together they take one connection, and are never in the way of money.
        found = [await self._read_one(reading) for reading in self._readings]
        values = [value for part in found if part is not None for value in part]
        return [*values, (UNREAD, (), sum(part is None for part in found))]

    async def _read_one(self, reading: Reading) -> Iterable[Value] | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                return list(await reading.read(self._runtime))
        except Exception as problem:  # noqa: BLE001 - whatever it raises, the others are shown
            log.warning("figures_not_read", of=reading.gauges[0].name, exception=trace(problem))
            return None

    def families(self) -> Iterator[Metric]:
        """What is known at this moment, as the library wants it."""
        for counter, counts in self._runtime.meter.counted():
            family = CounterMetricFamily(counter.name, counter.text, labels=counter.labels)
            for labels, value in counts:
                family.add_metric(labels, value)
            yield family
        for histogram, times in self._runtime.meter.timed():
            spread = HistogramMetricFamily(histogram.name, histogram.text, labels=histogram.labels)
            for labels, timed in times:
                bounds = [*map(str, histogram.bounds), "+Inf"]
                spread.add_metric(labels, list(zip(bounds, accumulate(timed.classes), strict=True)), timed.seconds)
            yield spread
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        shown = {gauge: GaugeMetricFamily(gauge.name, gauge.text, labels=gauge.labels) for gauge in self.gauges}
        for gauge, labels, value in self._values:
            shown[gauge].add_metric(labels, value)
        yield from shown.values()


class _Families(Collector):
    """The registry's way to ask."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def collect(self) -> Iterator[Metric]:
        """What is known at this moment."""
        return self._exposition.families()
