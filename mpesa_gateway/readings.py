"""How things stand, read when they are asked for: what the plugin ``metrics`` shows besides counts and times."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from mpesa_gateway.meter import Gauge, Value
from mpesa_gateway.runtime import Runtime


@dataclass(frozen=True)
class Reading:
    """Gauges that are read together when somebody asks, and at most every few seconds.

    ``read`` asks Postgres only what an index answers. What it gives has few values for each label: never a merchant, a
    payment or a phone number.
    """

    gauges: tuple[Gauge, ...]
    read: Callable[[Runtime], Awaitable[Iterable[Value]]]
