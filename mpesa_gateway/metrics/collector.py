"""Gauges collected at a scrape."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily

Gauges = Sequence[GaugeMetricFamily]


@dataclass(frozen=True)
class Collector:
    """Gauges collected at most once in ``metrics.keep`` seconds.

    ``gauges`` returns them without values; ``collect`` sets these. No label holds a merchant, payment or phone number.
    """

    gauges: Callable[[], Gauges]
    collect: Callable[[Any, Gauges], Awaitable[None]]
