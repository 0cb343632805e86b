"""The queue's way into reconciliation."""

from typing import TYPE_CHECKING

from mpesa_gateway_reconciliation.service import Reconciliation

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def reconcile(gateway: "Gateway", *, merchant_id: str) -> None:
    """Reconcile one merchant's last hours."""
    await gateway.services.get(Reconciliation).run_due(merchant_id)


async def reconcile_all(gateway: "Gateway") -> None:
    """Wake a run for every merchant that can be reconciled."""
    await gateway.services.get(Reconciliation).wake_all()
