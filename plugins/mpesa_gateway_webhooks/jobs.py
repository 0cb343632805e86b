"""The queue's way into webhooks."""

from typing import TYPE_CHECKING

from mpesa_gateway_webhooks.deliveries import Deliveries

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


_PATIENCE = 1.0
"""Seconds that a job waits for the endpoints that it calls; the lease in Postgres stands for those that are slower."""


async def deliver(gateway: "Gateway", *, delivery_ids: list[str]) -> None:
    """Send deliveries that are due. Those that take long go on without the job."""
    await gateway.services.get(Deliveries).deliver(delivery_ids, patience=_PATIENCE)


async def hand_over(gateway: "Gateway") -> None:
    """Give what waits for an endpoint to the one that is set by now."""
    await gateway.services.get(Deliveries).hand_over()


async def sweep(gateway: "Gateway") -> None:
    """Hand over deliveries that are due and that nobody was woken for."""
    await gateway.services.get(Deliveries).sweep()
