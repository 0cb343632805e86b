"""The objects of this plugin, each made of what it needs."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, RefundablePayments
from mpesa_gateway_refunds.desk import RefundDesk
from mpesa_gateway_refunds.service import RefundService


def _service(runtime: Runtime) -> RefundService:
    return RefundService(
        runtime,
        callbacks=runtime.port(Callbacks),
        credentials=runtime.port(Credentials),
        payments=runtime.port(RefundablePayments),
    )


def _desk(runtime: Runtime) -> RefundDesk:
    return RefundDesk(
        db=runtime.db,
        reads=runtime.reads,
        merchants=runtime.merchants,
        payments=runtime.port(Payments),
        refunds=runtime.port(RefundService),
    )


PROVIDES: Provides = ((RefundService, _service), (RefundDesk, _desk))
