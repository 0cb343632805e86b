"""Metrics: the counters and histograms of each process, and the gauges that are collected at a scrape."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from docs.site.reference.words import NOTE, code, document, table
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.plugin import Plugin


class Description(NamedTuple):
    """One metric."""

    name: str
    kind: str
    documentation: str
    labels: tuple[str, ...]
    plugin: str


def page(plugins: Sequence[Plugin]) -> str:
    """Return the whole page."""
    return document(
        "# Metrics",
        NOTE,
        "[How to scrape them](../operating.md#metrics), and [what to do about each alert](../runbook.md).",
        "## Counted by each process",
        "Counters and histograms begin at 0 when the process starts.",
        _table(counted(plugins)),
        "## Collected at a scrape",
        "Each process reads these from Postgres, Valkey or its own memory, at most once in `metrics.keep` seconds.",
        _table(collected(plugins)),
    )


def counted(plugins: Sequence[Plugin]) -> Iterator[Description]:
    """Yield the metrics that the kernel and the plugins define in the registry of each gateway."""
    yield from _defined(KernelMetrics, "kernel")
    for plugin in plugins:
        if plugin.metrics is not None:
            yield from _defined(plugin.metrics, plugin.name)


def collected(plugins: Sequence[Plugin]) -> Iterator[Description]:
    """Yield the gauges of all collectors."""
    for plugin in plugins:
        for collector in plugin.collectors:
            for gauge in collector.gauges():
                yield _describe(gauge, gauge, plugin.name)


def _defined(definition: Callable[[CollectorRegistry], Any], plugin: str) -> Iterator[Description]:
    metrics = cast("dict[str, object]", vars(definition(CollectorRegistry())))
    for metric in metrics.values():
        if isinstance(metric, MetricWrapperBase):
            for family in metric.describe():
                yield _describe(family, metric, plugin)


def _describe(family: Metric, labelled: Any, plugin: str) -> Description:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    # The library has no public attribute for the names of the labels.
    return Description(name, family.type, family.documentation, labelled._labelnames, plugin)  # noqa: SLF001 - see above


def _table(metrics: Iterator[Description]) -> str:
    return table(
        ["metric", "type", "labels", "plugin", "meaning"],
        (
            [code(each.name), each.kind, ", ".join(map(code, each.labels)), each.plugin, each.documentation]
            for each in metrics
        ),
    )
