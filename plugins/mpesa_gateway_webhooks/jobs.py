"""Jobs of the webhooks plugin."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks.deliveries import DeliveryService


async def deliver(gateway: Runtime, *, delivery_ids: list[str]) -> None:
    """The lease in Postgres outlives the job."""
    await gateway.port(DeliveryService).begin(delivery_ids)


async def assign_undelivered(gateway: Runtime) -> None:
    await gateway.port(DeliveryService).assign_undelivered()


async def sweep(gateway: Runtime) -> None:
    await gateway.port(DeliveryService).sweep()
