"""Services of the webhooks plugin."""

from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Provides
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.operator_service import WebhookOperatorService

PROVIDES: Provides = (provide(EndpointService), provide(DeliveryService), provide(WebhookOperatorService))
