"""The plugin's declaration."""

from acme_sms.routes import list_texts
from acme_sms.settings import SmsSettings
from acme_sms.tables import TextRow
from acme_sms.texts import Texts
from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Job, Plugin, Tables, on_event
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.events import PaymentCompleted


async def text_the_buyer(event: PaymentCompleted, gateway: Runtime) -> None:
    """Store a pending text for a completed payment. Called after commit, at least once."""
    await gateway.port(Texts).owe(event)


async def send(gateway: Runtime, *, payment_id: str) -> None:
    """Send one text."""
    await gateway.port(Texts).send(payment_id)


async def sweep(gateway: Runtime) -> None:
    """Send all due texts."""
    await gateway.port(Texts).sweep()


plugin = Plugin(
    name="acme_sms",
    summary="Texts buyers when their payment has arrived.",
    requires=("payments",),
    settings=SmsSettings,
    routes=(list_texts,),
    jobs=(Job(send, timeout=30), Job(sweep, timeout=30, cron="* * * * *")),
    subscribers=(on_event(PaymentCompleted, text_the_buyer),),
    provides=(provide(Texts),),
    tables=Tables(models=(TextRow,), migrations="acme_sms.migrations"),
)
