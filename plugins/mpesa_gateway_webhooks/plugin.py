"""The declaration of the webhooks plugin."""

from collections.abc import Sequence

from mpesa_gateway.events import PublicEvent
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, RetentionRule, SealedColumn, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks import COMMANDS
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.doctor import CHECKS
from mpesa_gateway_webhooks.endpoint_tables import EndpointRow
from mpesa_gateway_webhooks.erasure import ATTEMPTS
from mpesa_gateway_webhooks.events import WebhookTest
from mpesa_gateway_webhooks.invariants import INVARIANTS
from mpesa_gateway_webhooks.jobs import assign_undelivered, deliver, sweep
from mpesa_gateway_webhooks.metrics import COLLECTORS, WebhookMetrics
from mpesa_gateway_webhooks.pages import PAGES
from mpesa_gateway_webhooks.provides import PROVIDES
from mpesa_gateway_webhooks.readiness import NEEDS
from mpesa_gateway_webhooks.routes import routes
from mpesa_gateway_webhooks.scopes import WEBHOOKS_READ, WEBHOOKS_WRITE
from mpesa_gateway_webhooks.settings import WebhooksSettings
from mpesa_gateway_webhooks.tables import FORGET_ANSWERS, FORGET_ATTEMPTS, AttemptRow, DeliveryRow


async def create_deliveries(events: Sequence[PublicEvent], gateway: Runtime) -> None:
    await gateway.port(DeliveryService).create_deliveries(events)


_AAD = ("merchant_id", "'webhooks'", "'secret'")

plugin = Plugin(
    name="webhooks",
    summary="Notifies merchants: signed webhooks, retried for 32 hours, logged, replayable, and a list of events.",
    settings=WebhooksSettings,
    scopes=(WEBHOOKS_READ, WEBHOOKS_WRITE),
    id_prefixes=(IdPrefix("whe", "endpoint"), IdPrefix("dlv", "delivery"), IdPrefix("att", "attempt at a delivery")),
    routes=routes,
    jobs=(
        Job(deliver, timeout=90, queue="deliveries"),
        Job(sweep, timeout=30, cron="* * * * * */3", queue="maintenance"),
        Job(assign_undelivered, timeout=300, cron="* * * * *", queue="maintenance"),
    ),
    publishes=(WebhookTest,),
    subscribers=(on_event_in_transaction(PublicEvent, create_deliveries),),
    provides=PROVIDES,
    tables=Tables(
        models=(EndpointRow, DeliveryRow, AttemptRow),
        migrations="mpesa_gateway_webhooks.migrations",
        sealed=(
            SealedColumn(table="webhook_endpoint", key="endpoint_id", column="secret", aad=_AAD),
            SealedColumn(table="webhook_endpoint", key="endpoint_id", column="previous_secret", aad=_AAD),
        ),
    ),
    commands=COMMANDS,
    pages=PAGES,
    contributes=NEEDS,
    checks=CHECKS,
    invariants=INVARIANTS,
    metrics=WebhookMetrics,
    collectors=COLLECTORS,
    retention=(
        RetentionRule(
            "attempts at delivery",
            FORGET_ATTEMPTS,
            prefix="att",
            days=lambda gateway: gateway.settings(WebhooksSettings).keep_attempts_days,
        ),
        RetentionRule(
            "answers to deliveries",
            FORGET_ANSWERS,
            prefix="dlv",
            days=lambda gateway: gateway.settings(WebhooksSettings).keep_attempts_days,
        ),
    ),
    erasers=(ATTEMPTS,),
)
