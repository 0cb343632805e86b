"""The queue's way into the inbox."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.service import CallbackInbox


async def sweep(gateway: Runtime) -> None:
    """Offer callbacks that nobody could use yet again, and forget old refusals."""
    await gateway.port(CallbackInbox).sweep()
