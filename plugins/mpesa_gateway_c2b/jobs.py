"""Jobs of c2b."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.accounts import AccountNumbers


async def allocate_waiting(gateway: Runtime) -> None:
    await gateway.port(AccountNumbers).allocate_waiting()
