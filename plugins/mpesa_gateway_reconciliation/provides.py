"""The objects of this plugin, each made of what it needs."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, Recovery, UnallocatedMoney
from mpesa_gateway_reconciliation.desk import ReconciliationDesk
from mpesa_gateway_reconciliation.service import Reconciliation
from mpesa_gateway_reconciliation.settling import Settling, UnallocatedLines


def _settling(runtime: Runtime) -> Settling:
    return Settling(
        db=runtime.db,
        clock=runtime.clock,
        audit=runtime.audit,
        daraja=runtime.daraja,
        tracer=runtime.tracer,
        callbacks=runtime.port(Callbacks),
        credentials=runtime.port(Credentials),
        payments=runtime.port(Payments),
        recovery=runtime.port(Recovery),
    )


def _service(runtime: Runtime) -> Reconciliation:
    return Reconciliation(
        runtime,
        callbacks=runtime.port(Callbacks),
        credentials=runtime.port(Credentials),
        settling=runtime.port(Settling),
    )


def _desk(runtime: Runtime) -> ReconciliationDesk:
    return ReconciliationDesk(
        db=runtime.db,
        reads=runtime.reads,
        clock=runtime.clock,
        audit=runtime.audit,
        payments=runtime.port(Payments),
        settling=runtime.port(Settling),
    )


PROVIDES: Provides = (
    (Reconciliation, _service),
    (ReconciliationDesk, _desk),
    (Settling, _settling),
    (UnallocatedMoney, lambda runtime: UnallocatedLines(runtime.db)),
)
