"""Ports and services of the reconciliation plugin."""

from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Provides
from mpesa_gateway_payments.api import UnallocatedMoney
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.operator_service import ReconciliationOperatorService
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.run_reader import RunReader
from mpesa_gateway_reconciliation.service import ReconciliationService
from mpesa_gateway_reconciliation.unallocated import UnallocatedMoneyReader

PROVIDES: Provides = (
    provide(ReconciliationService),
    provide(RunReader),
    provide(PullRegistrations),
    provide(LineMatching),
    provide(ReconciliationOperatorService),
    provide(UnallocatedMoneyReader, UnallocatedMoney),
)
