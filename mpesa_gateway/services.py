"""Ports that plugins offer each other."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class NotProvided(LookupError):
    """No enabled plugin provides the port."""


class Services:
    """Finds providers by Protocol. Raises ValueError for a cycle."""

    def __init__(self) -> None:
        self._factories: dict[type[Any], Callable[[], Any]] = {}
        self._made: dict[type[Any], Any] = {}
        self._making: set[type[Any]] = set()

    def offer(self, port: type[Any], factory: Callable[[], Any]) -> None:
        """Register a provider, created at first use."""
        if port in self._factories:
            raise ValueError(f"two plugins provide {port.__qualname__}: enable only one of them")
        self._factories[port] = factory

    def offers(self, port: type[Any]) -> bool:
        return port in self._factories

    def get(self, port: type[T]) -> T:
        """Raise NotProvided."""
        made = self._made.get(port)
        if made is None:
            factory = self._factories.get(port)
            if factory is None:
                raise NotProvided(
                    f"no enabled plugin provides {port.__module__}.{port.__qualname__}: "
                    "add the plugin that owns it to `plugins` in the configuration"
                )
            if port in self._making:
                raise ValueError(
                    f"{port.__qualname__} and what it is made of need each other: make one without the other"
                )
            self._making.add(port)
            try:
                made = self._made[port] = factory()
            finally:
                self._making.discard(port)
        return cast(T, made)
