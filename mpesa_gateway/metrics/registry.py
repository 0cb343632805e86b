"""Metrics registry of one gateway."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

T = TypeVar("T")


class Metrics:
    """The registry and the objects that define its metrics."""

    def __init__(self, definitions: Iterable[Callable[[CollectorRegistry], Any]]) -> None:
        """Raise DuplicateTimeseries for a duplicate name."""
        self.registry = CollectorRegistry()
        self._defined = {definition: definition(self.registry) for definition in definitions}

    def get(self, definition: Callable[[CollectorRegistry], T]) -> T:
        """Return the object of a class of metrics. Raises KeyError."""
        defined: T = self._defined[definition]
        return defined
