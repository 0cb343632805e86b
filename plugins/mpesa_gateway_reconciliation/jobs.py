"""The queue's way into reconciliation."""

from typing import TYPE_CHECKING

from mpesa_gateway_reconciliation.service import Reconciliation

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def reconcile(gateway: "Gateway", *, shortcode_id: str) -> None:
    """Reconcile the last hours of one shortcode."""
    await gateway.services.get(Reconciliation).run_due(shortcode_id)


async def reconcile_all(gateway: "Gateway") -> None:
    """Wake a run for every shortcode that can be reconciled."""
    await gateway.services.get(Reconciliation).wake_all()
