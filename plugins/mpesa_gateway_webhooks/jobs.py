"""The queue's way into webhooks."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks.deliveries import DeliveryService


async def deliver(gateway: Runtime, *, delivery_ids: list[str]) -> None:
    """Begin to send deliveries that are due. They go on without the job; the lease in Postgres stands for them."""
    await gateway.port(DeliveryService).begin(delivery_ids)


async def hand_over(gateway: Runtime) -> None:
    """Give what waits for an endpoint to the one that is set by now."""
    await gateway.port(DeliveryService).assign_undelivered()


async def sweep(gateway: Runtime) -> None:
    """Hand over deliveries that are due and that nobody was woken for."""
    await gateway.port(DeliveryService).sweep()
