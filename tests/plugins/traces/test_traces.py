"""What a collector is sent of a gateway at work: whole traces, nothing that is not to be known, and never at a price."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, PLUGINS, SANDBOX, Api, running_gateway, shop
from tests.plugins.traces.collector import Collector, Seen, collecting

CALLBACK = "POST /v1/cb/{kind}/{token}"


@dataclass(frozen=True)
class Traced:
    """A gateway that is traced, a shop, its server, and the collector."""

    gateway: Gateway
    base: str
    api: Api
    receiver: Receiver
    collector: Collector


@pytest.fixture
async def collector() -> AsyncGenerator[Collector]:
    """Where the traces go."""
    async with collecting() as found:
        yield found


@pytest.fixture
def traced_values(values: dict[str, Any], collector: Collector) -> dict[str, Any]:
    """Everything, with traces that are sent at once."""
    return values | {"plugins": [*PLUGINS, "traces"], "traces": {"endpoint": collector.endpoint, "every": 0.05}}


@pytest.fixture
async def traced(traced_values: dict[str, Any], collector: Collector) -> AsyncGenerator[Traced]:
    """A gateway at work."""
    async with (
        receiving() as receiver,
        running_gateway(traced_values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        yield Traced(gateway, base, api, receiver, collector)


async def test_a_payment_is_one_trace_and_what_comes_of_it_another_that_leads_there(traced: Traced) -> None:
    asked = await traced.api.pay("254711000018", key="traced")
    payment_id = asked.data["id"]
    await traced.api.settled(payment_id, "completed")
    await traced.receiver.wait_for(1)
    (delivered,) = await traced.collector.wait_for("deliver payment.completed")
    (request,) = await traced.collector.wait_for("POST /v1/payments")
    (callback,) = await traced.collector.wait_for(CALLBACK)
    for span in traced.collector.spans():
        print(span.name, span.kind, span.trace[:6], span.span[:4], span.parent[:4], span.links, span.attributes)
    assert 0
