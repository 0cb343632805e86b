"""The queue's way into payments."""

from typing import TYPE_CHECKING

from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.outside_reversal import OutsideReversals
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.tally import PaymentTally

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def ask(gateway: "Gateway", *, shortcode_id: str) -> None:
    """Ask Daraja how a shortcode's due payments stand, those that no callback has ended."""
    await gateway.services.get(StkQueries).ask_due(shortcode_id)


async def sweep(gateway: "Gateway") -> None:
    """Wake a job for every shortcode with payments that are due."""
    await gateway.services.get(StkQueries).wake_due()


async def expire(gateway: "Gateway") -> None:
    """End the payments whose time is up, and reverse those whose receipt M-Pesa had called reversed before."""
    await gateway.services.get(Expiry).end_due()
    await OutsideReversals(gateway).take_noted()


async def tally(gateway: "Gateway") -> None:
    """Count the hours of which payments have changed."""
    await gateway.services.get(PaymentTally).count()
