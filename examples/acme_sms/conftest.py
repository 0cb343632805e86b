"""Fixtures: a gateway with the plugin enabled, and a local SMS provider."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.testing.receiver import Receiver, receiving

pytest_plugins = ["mpesa_gateway.testing.fixtures"]


@pytest.fixture
async def provider() -> AsyncGenerator[Receiver]:
    """A local SMS provider that records requests and returns a configured answer."""
    async with receiving() as found:
        yield found


@pytest.fixture
def gateway_settings(gateway_settings: dict[str, Any], provider: Receiver) -> dict[str, Any]:
    """The settings for tests, with the plugin enabled by the name of its entry point."""
    gateway_settings["plugins"].append("acme_sms")
    return gateway_settings | {
        "acme_sms": {"url": provider.url, "api_key": "key-of-the-shop", "pause": 50, "timeout": 10, "give_up_after": 2}
    }
