"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import UnallocatedMoney
from mpesa_gateway_reconciliation.desk import ReconciliationDesk
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.run_reader import RunReader
from mpesa_gateway_reconciliation.service import Reconciliation
from mpesa_gateway_reconciliation.settling import Settling
from mpesa_gateway_reconciliation.unallocated import UnallocatedLines

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


def _registrations(gateway: "Gateway") -> PullRegistrations:
    return PullRegistrations(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        daraja=lambda: gateway.daraja,
        callbacks=gateway.services.get(Callbacks),
        credentials=gateway.services.get(Credentials),
    )


PROVIDES: "tuple[tuple[type[Any], Callable[[Gateway], Any]], ...]" = (
    (Reconciliation, Reconciliation),
    (RunReader, lambda gateway: RunReader(db=gateway.db, reads=gateway.reads)),
    (PullRegistrations, _registrations),
    (Settling, Settling),
    (ReconciliationDesk, ReconciliationDesk),
    (UnallocatedMoney, UnallocatedLines),
)
