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
    ``fail`` sets the values after an error or a timeout; without it, the gauges have none. ``reads_postgres``: at most
    one such collector runs at a time, so that payments keep the other connections.
    """

    gauges: Callable[[], Gauges]
    collect: Callable[[Any, Gauges], Awaitable[None]]
    fail: Callable[[Gauges], None] | None = None
    reads_postgres: bool = True
