"""The jobs of the callbacks plugin."""

from typing import TYPE_CHECKING

from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def sweep(gateway: "Gateway") -> None:
    """Publish waiting callbacks again, and delete refused callbacks over the limit."""
    await gateway.services.get(CallbackDispatcher).sweep()
