"""Jobs of the callbacks plugin."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher


async def sweep(gateway: Runtime) -> None:
    await gateway.port(CallbackDispatcher).sweep()
