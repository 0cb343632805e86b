"""Jobs of the refunds plugin."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds.status_queries import RefundStatusQueries


async def query(gateway: Runtime, *, refund_id: str, merchant_id: str) -> None:
    await gateway.port(RefundStatusQueries).ask_if_slot_free(refund_id, merchant_id)


async def sweep(gateway: Runtime) -> None:
    await gateway.port(RefundStatusQueries).wake_due()
