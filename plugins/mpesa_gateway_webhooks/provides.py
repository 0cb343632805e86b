"""Ports and services of the webhooks plugin."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.operator_service import WebhookOperatorService
from mpesa_gateway_webhooks.settings import WebhooksSettings


def _operator_service(runtime: Runtime) -> WebhookOperatorService:
    return WebhookOperatorService(
        db=runtime.db,
        clock=runtime.clock,
        merchants=runtime.merchants,
        settings=runtime.settings(WebhooksSettings),
        endpoints=runtime.port(EndpointService),
    )


PROVIDES: Provides = (
    (EndpointService, EndpointService),
    (DeliveryService, lambda runtime: DeliveryService(runtime, endpoints=runtime.port(EndpointService))),
    (WebhookOperatorService, _operator_service),
)
