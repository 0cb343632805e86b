"""Jobs of transactions."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.announcing import AnnouncementSweep


async def announce(gateway: Runtime) -> None:
    await gateway.port(AnnouncementSweep).run()
