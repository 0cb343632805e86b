"""Fixtures for tests of a plugin: a gateway on real servers, the simulator, a shop, and published events.

In a plugin's ``conftest.py``: ``pytest_plugins = ["mpesa_gateway.testing.fixtures"]``. Needs pytest-asyncio and the
extra ``standalone``. Override ``gateway_settings`` to enable the plugin; ``frozen_clock`` stops the time.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.events import Event
from mpesa_gateway.plugin import Subscriber
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import Api, gateway_values, running_gateway, shop

E = TypeVar("E", bound=Event)

NOON = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
"""First time of ``frozen_clock``: noon in Nairobi."""


@dataclass
class PublishedEvents:
    """Events that the gateway has committed, in order."""

    events: list[Event] = field(default_factory=list[Event])
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for(self, kind: type[E], count: int = 1, *, patience: float = 15.0) -> list[E]:
        """Raises TimeoutError after ``patience`` seconds."""
        async with asyncio.timeout(patience), self._arrived:
            await self._arrived.wait_for(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    async def note(self, events: Sequence[Event], gateway: Gateway) -> None:

        async def committed() -> None:
            async with self._arrived:
                self.events.extend(events)
                self._arrived.notify_all()

        await gateway.db.after_commit(committed)


@dataclass(frozen=True)
class ServedGateway:
    """A running gateway, its base URL and its events."""

    gateway: Gateway
    base: str
    published: PublishedEvents


@pytest.fixture
def frozen_clock() -> SetClock:
    """The time, moved only by ``advance``. The simulator calls back at once."""
    return SetClock(NOON)


@pytest.fixture
def gateway_settings(database_url: str, valkey_url: str) -> dict[str, Any]:
    """Settings as in gateway.toml; override this fixture to change them."""
    return gateway_values(database_url, valkey_url)


@pytest_asyncio.fixture
async def served(request: pytest.FixtureRequest, gateway_settings: dict[str, Any]) -> AsyncGenerator[ServedGateway]:
    """The gateway, served over HTTP on a free port, with its own worker."""
    options: dict[str, Any] = {}
    if "frozen_clock" in request.fixturenames:
        options["clock"] = request.getfixturevalue("frozen_clock")
        if "simulator" in gateway_settings["plugins"]:
            gateway_settings["simulator"] = gateway_settings.get("simulator", {}) | {"callback_delay": 0}
    published = PublishedEvents()
    async with running_gateway(gateway_settings, **options) as (gateway, base):
        gateway.outbox.subscribe(Subscriber(Event, published.note, inside=True))
        yield ServedGateway(gateway, base, published)


@pytest.fixture
def gateway(served: ServedGateway) -> Gateway:
    return served.gateway


@pytest.fixture
def published(served: ServedGateway) -> PublishedEvents:
    return served.published


@pytest.fixture
def simulator(gateway: Gateway) -> Any:
    """The simulator: prompts (``list_pushes``) and real payments (``ledger``)."""
    (found,) = (plugin for plugin in gateway.plugins if plugin.name == "simulator")
    return gateway.port(found.provides[0][0])


@pytest_asyncio.fixture
async def webhook_receiver() -> AsyncGenerator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def shop_api(webhook_receiver: Receiver, served: ServedGateway) -> AsyncGenerator[Api]:
    """A new shop's client, with a key, sandbox credentials and, if webhooks are enabled, an endpoint."""
    has_webhooks = any(plugin.name == "webhooks" for plugin in served.gateway.plugins)
    url = webhook_receiver.url if has_webhooks else None
    async with shop(served.gateway, served.base, webhook_url=url) as api:
        yield api
