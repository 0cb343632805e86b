"""The queue's way into refunds."""

from typing import TYPE_CHECKING

from mpesa_gateway_refunds.queries import RefundQueries

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def ask(gateway: "Gateway", *, refund_id: str, merchant_id: str) -> None:
    """Ask M-Pesa what became of a reversal whose result has not come."""
    await gateway.services.get(RefundQueries).ask_in_turn(refund_id, merchant_id)


async def sweep(gateway: "Gateway") -> None:
    """Wake a job for every refund that is due."""
    await gateway.services.get(RefundQueries).wake_due()
