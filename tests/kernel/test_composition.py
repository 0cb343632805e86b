"""Protects composition without I/O: a gateway's parts exist before its start, and raise if they need it."""

from typing import Any, Protocol

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.errors import NotStarted
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.rate_limits import AUTH
from mpesa_gateway.services import NotProvided


def composed(*plugins: Plugin, valkey_url: str = "valkey://127.0.0.1:9/0") -> Gateway:
    values: dict[str, Any] = {
        "plugins": [],
        "database": {"url": "postgresql://127.0.0.1:9/none"},
        "valkey": {"url": valkey_url},
        "security": {"master_key": "A" * 43 + "="},
    }
    return Gateway(GatewayConfig.from_values(values), plugins=plugins)


class Bread(Protocol):
    """A port."""


class Butter(Protocol):
    """A port without a provider, or one that needs bread."""


class Loaf:
    """The provider of both ports."""

    def __init__(self, butter: Butter | None) -> None:
        self.butter = butter


async def test_gateway_parts_before_the_start_raise_not_started() -> None:
    gateway = composed()
    assert gateway.limits.blocked_seconds(AUTH, "10.0.0.1") == 0
    with pytest.raises(NotStarted, match=r"lifespan=gateway\.lifespan"):
        _ = gateway.jobs.queues
    with pytest.raises(NotStarted):
        await gateway.limits.count_call("key_none")
    with pytest.raises(NotStarted):
        await gateway.jobs.enqueue("kernel.forget")


def test_port_object_is_made_once_before_the_start() -> None:
    bread = Plugin(
        name="bread",
        summary="Bakes.",
        provides=((Bread, lambda runtime: Loaf(runtime.port_if_provided(Butter))),),
    )
    gateway = composed(bread)
    made = gateway.port(Bread)
    assert isinstance(made, Loaf)
    assert made.butter is None
    assert gateway.port(Bread) is made
    with pytest.raises(NotProvided, match="Butter"):
        gateway.port(Butter)


def test_ports_that_need_each_other_are_refused() -> None:
    def of_butter(runtime: Runtime) -> Loaf:
        return Loaf(runtime.port(Butter))

    def of_bread(runtime: Runtime) -> Any:
        return runtime.port(Bread)

    plugin = Plugin(name="meal", summary="Serves.", provides=((Bread, of_butter), (Butter, of_bread)))
    with pytest.raises(ValueError, match="Bread and what it is made of need each other"):
        composed(plugin).port(Bread)


@pytest.mark.parametrize("url", ["somewhere", "http://a", "valkey://:se/cret@a:6379"])
def test_valkey_url_that_is_invalid_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match=r"valkey\.url") as refused:
        composed(valkey_url=url)
    assert "cret" not in str(refused.value)
