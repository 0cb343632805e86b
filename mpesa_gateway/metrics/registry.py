"""The metrics of one gateway, in a registry of its own."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

T = TypeVar("T")


class Metrics:
    """The registry of one gateway, and the objects that define its counters and histograms."""

    def __init__(self, definitions: Iterable[Callable[[CollectorRegistry], Any]]) -> None:
        """Raises DuplicateTimeseries if two metrics have the same name."""
        self.registry = CollectorRegistry()
        self._defined = {definition: definition(self.registry) for definition in definitions}

    def get(self, definition: Callable[[CollectorRegistry], T]) -> T:
        """Return this gateway's object of a class of metrics. Raises KeyError if no enabled plugin declares it."""
        defined: T = self._defined[definition]
        return defined
