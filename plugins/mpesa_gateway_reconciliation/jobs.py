"""Jobs of reconciliation."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_reconciliation.service import ReconciliationService


async def reconcile(gateway: Runtime, *, shortcode_id: str) -> None:
    await gateway.port(ReconciliationService).run_due(shortcode_id)


async def reconcile_all(gateway: Runtime) -> None:
    await gateway.port(ReconciliationService).enqueue_all()
