"""Gauges that are collected when Prometheus scrapes."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily

Gauges = Sequence[GaugeMetricFamily]


@dataclass(frozen=True)
class Collector:
    """Gauges that are collected together, at most once in ``metrics.keep`` seconds.

    ``gauges`` returns them without values. ``collect`` receives the gateway and these gauges, and adds the values;
    its queries must be served by indexes. No label holds a merchant, a payment or a phone number.
    """

    gauges: Callable[[], Gauges]
    collect: Callable[[Any, Gauges], Awaitable[None]]
