"""Jobs of c2b."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.accounts import AccountNumbers


async def allocate_waiting(gateway: Runtime) -> None:
    """Allocate money whose account number was stored after it."""
    await gateway.port(AccountNumbers).allocate_waiting()
