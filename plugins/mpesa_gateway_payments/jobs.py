"""The queue's way into payments."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.outside_reversal import ExternalReversals
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_payments.stk_queries import StkQueries


async def ask(gateway: Runtime, *, shortcode_id: str) -> None:
    """Ask Daraja how a shortcode's due payments stand, those that no callback has ended."""
    await gateway.port(StkQueries).ask_due(shortcode_id)


async def sweep(gateway: Runtime) -> None:
    """Wake a job for every shortcode with payments that are due."""
    await gateway.port(StkQueries).wake_due()


async def expire(gateway: Runtime) -> None:
    """End the payments whose time is up, and reverse those whose receipt M-Pesa had called reversed before."""
    await gateway.port(Expiry).end_due()
    await gateway.port(ExternalReversals).apply_recorded()


async def tally(gateway: Runtime) -> None:
    """Count the hours of which payments have changed."""
    await gateway.port(PaymentStatsReader).count()
