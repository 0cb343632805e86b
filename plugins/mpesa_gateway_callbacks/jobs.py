"""The queue's way into the inbox."""

from typing import TYPE_CHECKING

from mpesa_gateway_callbacks.service import CallbackInbox

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def sweep(gateway: "Gateway") -> None:
    """Offer callbacks that nobody could use yet again, and forget old refusals."""
    await gateway.services.get(CallbackInbox).sweep()
