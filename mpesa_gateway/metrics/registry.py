"""Metrics registry of one gateway."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

T = TypeVar("T")


class Metrics:
    """The registry and its definitions."""

    def __init__(self, definitions: Iterable[Callable[[CollectorRegistry], Any]]) -> None:
        self.registry = CollectorRegistry()
        self._defined = {definition: definition(self.registry) for definition in definitions}

    def has(self, definition: Callable[[CollectorRegistry], Any]) -> bool:
        return definition in self._defined

    def get(self, definition: Callable[[CollectorRegistry], T]) -> T:
        defined: T = self._defined[definition]
        return defined
