"""Construction of the ports and services of this plugin."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, StatementMatching, UnallocatedMoney
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.operator_service import ReconciliationOperatorService
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.run_reader import RunReader
from mpesa_gateway_reconciliation.service import ReconciliationService
from mpesa_gateway_reconciliation.unallocated import UnallocatedMoneyReader
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


def _line_matching(gateway: Runtime) -> LineMatching:
    return LineMatching(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        daraja=gateway.daraja,
        trace_links=gateway.trace_links,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        payments=gateway.port(Payments),
        statement_matching=gateway.port(StatementMatching),
    )


def _service(gateway: Runtime) -> ReconciliationService:
    return ReconciliationService(
        gateway,
        credentials=gateway.port(Credentials),
        settling=gateway.port(LineMatching),
        runs=gateway.port(RunReader),
        transactions=gateway.port(Transactions),
    )


def _operator_service(gateway: Runtime) -> ReconciliationOperatorService:
    return ReconciliationOperatorService(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        payments=gateway.port(Payments),
        settling=gateway.port(LineMatching),
    )


PROVIDES: Provides = (
    (ReconciliationService, _service),
    (RunReader, lambda gateway: RunReader(db=gateway.db)),
    (PullRegistrations, _registrations),
    (LineMatching, _line_matching),
    (ReconciliationOperatorService, _operator_service),
    (UnallocatedMoney, lambda gateway: UnallocatedMoneyReader(gateway.db)),
)
