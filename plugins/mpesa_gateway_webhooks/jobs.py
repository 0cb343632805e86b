"""The queue's way into webhooks."""

from typing import TYPE_CHECKING

from mpesa_gateway_webhooks.deliveries import Deliveries

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def deliver(gateway: "Gateway", *, delivery_ids: list[str]) -> None:
    """Begin to send deliveries that are due. They go on without the job; the lease in Postgres stands for them."""
    await gateway.services.get(Deliveries).begin(delivery_ids)


async def hand_over(gateway: "Gateway") -> None:
    """Give what waits for an endpoint to the one that is set by now."""
    await gateway.services.get(Deliveries).hand_over()


async def sweep(gateway: "Gateway") -> None:
    """Hand over deliveries that are due and that nobody was woken for."""
    await gateway.services.get(Deliveries).sweep()
