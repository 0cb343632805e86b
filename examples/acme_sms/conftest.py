"""A gateway with the plugin enabled, and a provider of SMS that really listens."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.testing.receiver import Receiver, receiving

pytest_plugins = ["mpesa_gateway.testing.fixtures"]


@pytest.fixture
async def provider() -> AsyncGenerator[Receiver]:
    """The provider of SMS, on this machine: what it was sent, and what it answers."""
    async with receiving() as found:
        yield found


@pytest.fixture
def gateway_settings(gateway_settings: dict[str, Any], provider: Receiver) -> dict[str, Any]:
    """The settings for tests, with the plugin enabled by the name of its entry point."""
    gateway_settings["plugins"].append("acme_sms")
    return gateway_settings | {
        "acme_sms": {"url": provider.url, "api_key": "key-of-the-shop", "pause": 50, "timeout": 10, "give_up_after": 2}
    }
