"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, Recovery, UnallocatedMoney
from mpesa_gateway_reconciliation.desk import ReconciliationDesk
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.run_reader import RunReader
from mpesa_gateway_reconciliation.service import Reconciliation
from mpesa_gateway_reconciliation.settling import Settling
from mpesa_gateway_reconciliation.unallocated import UnallocatedLines
from mpesa_gateway_transactions.api import Transactions


def _registrations(gateway: Runtime) -> PullRegistrations:
    return PullRegistrations(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        daraja=gateway.daraja,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
    )


def _settling(gateway: Runtime) -> Settling:
    return Settling(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        daraja=gateway.daraja,
        trace_links=gateway.trace_links,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        payments=gateway.port(Payments),
        recovery=gateway.port(Recovery),
    )


def _service(gateway: Runtime) -> Reconciliation:
    return Reconciliation(
        gateway,
        credentials=gateway.port(Credentials),
        settling=gateway.port(Settling),
        runs=gateway.port(RunReader),
        transactions=gateway.port(Transactions),
    )


def _desk(gateway: Runtime) -> ReconciliationDesk:
    return ReconciliationDesk(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        payments=gateway.port(Payments),
        settling=gateway.port(Settling),
    )


PROVIDES: Provides = (
    (Reconciliation, _service),
    (RunReader, lambda gateway: RunReader(db=gateway.db)),
    (PullRegistrations, _registrations),
    (Settling, _settling),
    (ReconciliationDesk, _desk),
    (UnallocatedMoney, lambda gateway: UnallocatedLines(gateway.db)),
)
