"""Protects the construction of plugins' objects: each parameter is found by its type, or refused by name."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Plugin, Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.services import NotProvided


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plugin's settings."""

    loaves: int = 3


class Sales:
    """The plugin's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry


class Flour(Protocol):
    """A port."""


class Mill:
    """The provider of the port."""


class Salt(Protocol):
    """A port that no plugin provides."""


class Bakery:
    """A class with a parameter of each kind."""

    def __init__(
        self,
        gateway: Runtime,
        *,
        clock: Clock,
        size: Size,
        sales: Sales,
        flour: Flour,
        salt: Salt | None,
        most: int = 7,
    ) -> None:
        self.found = (gateway, clock, size, sales, flour, salt, most)


class Shop:
    """A class with a parameter of another type."""

    def __init__(self, *, clock: Clock, url: Callable[[str], str]) -> None:
        self.clock = clock
        self.url = url


class SaltShop:
    """A class that needs a port without a provider."""

    def __init__(self, *, salt: Salt) -> None:
        self.salt = salt


class Opening:
    """Has only a start."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")


class Closing:
    """Has only a stop."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def stop(self) -> None:
        self.calls.append("stop")


def plugin(*provides: Any) -> Plugin:
    entries: Provides = provides
    return Plugin(name="bakery", summary="Bakes.", settings=Size, metrics=Sales, provides=entries)


def composed(*provides: Any) -> Gateway:
    values: dict[str, Any] = {
        "plugins": [],
        "database": {"url": "postgresql://127.0.0.1:9/none"},
        "valkey": {"url": "valkey://127.0.0.1:9/0"},
        "security": {"master_key": "A" * 43 + "="},
    }
    return Gateway(GatewayConfig.from_values(values), plugins=(plugin(*provides),))


def test_provide_with_each_kind_of_parameter_finds_it_by_its_type() -> None:
    gateway = composed(provide(Bakery), provide(Mill, Flour))
    found, clock, size, sales, flour, salt, most = gateway.port(Bakery).found
    assert found is gateway
    assert clock is gateway.clock
    assert size == Size()
    assert sales is gateway.metrics.get(Sales)
    assert flour is gateway.port(Flour)
    assert isinstance(flour, Mill)
    assert salt is None
    assert most == 7


def test_provide_with_a_provider_of_an_optional_port_passes_it() -> None:
    gateway = composed(provide(Bakery), provide(Mill, Flour), provide(Mill, Salt))
    assert gateway.port(Bakery).found[5] is gateway.port(Salt)


def test_provide_with_a_named_parameter_passes_its_value() -> None:
    shop = composed(provide(Shop, url=lambda gateway: gateway.url)).port(Shop)
    assert shop.url("/ops").endswith("/ops")


def test_provide_without_a_value_for_another_type_names_the_parameter() -> None:
    gateway = composed(provide(Shop))
    with pytest.raises(TypeError, match="Shop: url is no part, settings, metrics or port"):
        gateway.port(Shop)


def test_provide_without_a_provider_of_a_port_raises_not_provided() -> None:
    gateway = composed(provide(SaltShop))
    with pytest.raises(NotProvided, match="Salt"):
        gateway.port(SaltShop)


async def test_gateway_calls_the_start_and_the_stop_of_a_provider_with_one_of_them(values: dict[str, Any]) -> None:
    kept = {name: values[name] for name in ("database", "valkey", "security")}
    bare: dict[str, Any] = {"plugins": [], "worker": {"in_process": False}}
    gateway = Gateway(GatewayConfig.from_values(kept | bare), plugins=(plugin(provide(Opening), provide(Closing)),))
    await gateway.start()
    assert (gateway.port(Opening).calls, gateway.port(Closing).calls) == (["start"], [])
    await gateway.stop()
    assert (gateway.port(Opening).calls, gateway.port(Closing).calls) == (["start"], ["stop"])
