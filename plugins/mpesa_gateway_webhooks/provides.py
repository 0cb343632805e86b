"""The objects of this plugin, each made of what it needs."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks.deliveries import Deliveries
from mpesa_gateway_webhooks.desk import WebhookDesk
from mpesa_gateway_webhooks.endpoints import Endpoints
from mpesa_gateway_webhooks.settings import WebhooksSettings


def _desk(runtime: Runtime) -> WebhookDesk:
    return WebhookDesk(
        db=runtime.db,
        clock=runtime.clock,
        merchants=runtime.merchants,
        settings=runtime.settings(WebhooksSettings),
        endpoints=runtime.port(Endpoints),
    )


PROVIDES: Provides = (
    (Endpoints, Endpoints),
    (Deliveries, lambda runtime: Deliveries(runtime, endpoints=runtime.port(Endpoints))),
    (WebhookDesk, _desk),
)
