"""The queue's way into payments."""

from typing import TYPE_CHECKING

from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.tally import PaymentTally

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def ask(gateway: "Gateway", *, payment_id: str) -> None:
    """Ask Daraja how a payment stands that no callback has ended, or expire it."""
    await gateway.services.get(PaymentService).ask(payment_id)


async def sweep(gateway: "Gateway") -> None:
    """Wake a job for every payment that is due."""
    await gateway.services.get(PaymentService).wake_due()


async def tally(gateway: "Gateway") -> None:
    """Count the hours of which payments have changed."""
    await gateway.services.get(PaymentTally).count()
