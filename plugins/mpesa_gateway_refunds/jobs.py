"""The queue's way into refunds."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds.status_queries import RefundStatusQueries


async def ask(gateway: Runtime, *, refund_id: str, merchant_id: str) -> None:
    """Ask M-Pesa what became of a reversal whose result has not come."""
    await gateway.port(RefundStatusQueries).ask_if_slot_free(refund_id, merchant_id)


async def sweep(gateway: Runtime) -> None:
    """Wake a job for every refund that is due."""
    await gateway.port(RefundStatusQueries).wake_due()
