"""The queue's way into webhooks."""

from typing import TYPE_CHECKING

from mpesa_gateway_webhooks.deliveries import Deliveries

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def deliver(gateway: "Gateway", *, delivery_ids: list[str]) -> None:
    """Send deliveries that are due."""
    await gateway.services.get(Deliveries).deliver(delivery_ids)


async def sweep(gateway: "Gateway") -> None:
    """Hand over deliveries that are due and that nobody was woken for."""
    await gateway.services.get(Deliveries).sweep()
