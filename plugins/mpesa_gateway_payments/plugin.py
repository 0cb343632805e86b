"""The payments plugin, declared."""

from typing import TYPE_CHECKING

from mpesa_gateway.plugin import Job, Plugin, Tables, inside
from mpesa_gateway_callbacks.events import StkResulted
from mpesa_gateway_payments.api import Payments
from mpesa_gateway_payments.events import PaymentCompleted, PaymentFailed, PaymentMismatched
from mpesa_gateway_payments.jobs import ask, sweep
from mpesa_gateway_payments.routes import routes
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.tables import PaymentRow, PaymentStepRow

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def take_stk_result(result: StkResulted, gateway: "Gateway") -> None:
    """Daraja told how a push ended."""
    await gateway.services.get(PaymentService).take_result(result)


plugin = Plugin(
    name="payments",
    summary="Asks payers for money by STK push, once for each idempotency key, and follows every payment to its end.",
    requires=("credentials", "callbacks"),
    settings=PaymentsSettings,
    routes=routes,
    jobs=(Job(ask, timeout=90), Job(sweep, timeout=30, cron="* * * * * */5")),
    publishes=(PaymentCompleted, PaymentFailed, PaymentMismatched),
    subscribers=(inside(StkResulted, take_stk_result),),
    provides=((PaymentService, PaymentService), (Payments, lambda gateway: gateway.services.get(PaymentService))),
    tables=Tables(models=(PaymentRow, PaymentStepRow), migrations="mpesa_gateway_payments.migrations"),
)
