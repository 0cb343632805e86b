"""Descriptions of declared metrics, for the reference and for ``mpesa-gateway plugins``."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from mpesa_gateway.metrics.collector import Collector


class Description(NamedTuple):
    """One metric. ``kind`` is counter, histogram or gauge."""

    name: str
    kind: str
    documentation: str
    labels: tuple[str, ...]


def describe_metrics(definition: Callable[[CollectorRegistry], Any]) -> Iterator[Description]:
    """Yield the metrics that a class of metrics defines, in its order."""
    for metric in vars(definition(CollectorRegistry())).values():
        if isinstance(metric, MetricWrapperBase):
            for family in metric.describe():
                yield _describe(family, metric)


def describe_gauges(collector: Collector) -> Iterator[Description]:
    """Yield the gauges of a collector, in its order."""
    for gauge in collector.gauges():
        yield _describe(gauge, gauge)


def _describe(family: Metric, labelled: Any) -> Description:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    # The library has no public attribute for the names of the labels.
    return Description(name, family.type, family.documentation, labelled._labelnames)  # noqa: SLF001 - see above
