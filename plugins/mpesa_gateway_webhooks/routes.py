"""Routes of webhooks and events."""

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.http.envelope import Deleted, Page, Success
from mpesa_gateway.http.fields import path_id
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.security.scopes import MerchantRead, MerchantWrite
from mpesa_gateway.services import Services
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.schemas import (
    DeliveryQuery,
    DeliveryView,
    DeliveryWithAttempts,
    EventBody,
    EventQuery,
    Replayed,
    ReplayMany,
    SetEventTypes,
    SetWebhook,
    TestAnswer,
    WebhookView,
    WebhookWithSecret,
)
from mpesa_gateway_webhooks.scopes import WebhooksRead, WebhooksWrite

_DELIVERY = path_id("delivery_id", "dlv")


@put("/v1/merchant/webhook", status_code=200, tags=["Merchant"])
async def set_webhook(
    data: JSONBody[SetWebhook], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[WebhookWithSecret]:
    """Set the endpoint for events of the key's env. The secret is shown only in this response."""
    return Success(data=await services.get(EndpointService).set_url(caller, data.webhook_url, data.event_types))


@get("/v1/merchant/webhook", tags=["Merchant"], refuses=(NotFound,))
async def get_webhook(caller: MerchantRead, services: NamedDependency[Services]) -> Success[WebhookView]:
    """The endpoint, with its secret masked and its health."""
    return Success(data=await services.get(EndpointService).view(caller.merchant_id, caller.env))


@delete("/v1/merchant/webhook", status_code=200, tags=["Merchant"], refuses=(NotFound,))
async def remove_webhook(caller: MerchantWrite, services: NamedDependency[Services]) -> Success[Deleted]:
    """Remove the endpoint of the key's env; events wait for the next one."""
    await services.get(EndpointService).remove(caller)
    return Success(data=Deleted())


@put("/v1/merchant/webhook/event-types", status_code=200, tags=["Merchant"], refuses=(NotFound,))
async def set_event_types(
    data: JSONBody[SetEventTypes], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[WebhookView]:
    """Choose the events that the endpoint takes. The address and the secret stay.

    Events of other types are listed by `GET /v1/events`; their deliveries are cancelled and can be replayed.
    """
    return Success(data=await services.get(EndpointService).set_event_types(caller, data.event_types))


@post("/v1/merchant/webhook/rotate", status_code=200, tags=["Merchant"], refuses=(NotFound,))
async def rotate_secret(caller: MerchantWrite, services: NamedDependency[Services]) -> Success[WebhookWithSecret]:
    """Create a new secret, shown only in this response; the old one also signs for a day."""
    return Success(data=await services.get(EndpointService).rotate(caller))


@post("/v1/merchant/webhook/test", status_code=200, tags=["Merchant"], refuses=(NotFound,))
async def send_test(caller: WebhooksWrite, services: NamedDependency[Services]) -> Success[TestAnswer]:
    """Send a test webhook at once, and return the server's response."""
    return Success(data=await services.get(EndpointService).test(caller, services.get(DeliveryService).egress))


@get("/v1/webhooks/logs", dependencies={"filters": query_dependency(DeliveryQuery)}, tags=["Webhooks"])
async def list_deliveries(
    filters: NamedDependency[DeliveryQuery], caller: WebhooksRead, services: NamedDependency[Services]
) -> Page[DeliveryView]:
    """Sent and pending deliveries, newest first."""
    return await services.get(DeliveryService).page(caller.merchant_id, caller.env, filters)


@get("/v1/webhooks/logs/{delivery_id:str}", tags=["Webhooks"], described=_DELIVERY)
async def get_delivery(
    delivery_id: FromPath[str], caller: WebhooksRead, services: NamedDependency[Services]
) -> Success[DeliveryWithAttempts]:
    """A delivery with its attempts."""
    return Success(data=await services.get(DeliveryService).get(caller.merchant_id, caller.env, delivery_id))


@post(
    "/v1/webhooks/logs/{delivery_id:str}/replay",
    status_code=200,
    tags=["Webhooks"],
    described=_DELIVERY,
    refuses=(Conflict,),
)
async def replay_delivery(
    delivery_id: FromPath[str], caller: WebhooksWrite, services: NamedDependency[Services]
) -> Success[DeliveryView]:
    """Send a delivery again."""
    return Success(data=await services.get(DeliveryService).replay(caller, delivery_id))


@post("/v1/webhooks/replay", status_code=200, tags=["Webhooks"], refuses=(Conflict,))
async def replay_deliveries(
    data: JSONBody[ReplayMany], caller: WebhooksWrite, services: NamedDependency[Services]
) -> Success[Replayed]:
    """Send many deliveries again."""
    return Success(data=await services.get(DeliveryService).replay_many(caller, data))


@get("/v1/events", dependencies={"filters": query_dependency(EventQuery)}, tags=["Webhooks"])
async def list_events(
    filters: NamedDependency[EventQuery], caller: WebhooksRead, services: NamedDependency[Services]
) -> Page[EventBody]:
    """Events as sent in webhooks, newest first."""
    return await services.get(DeliveryService).events(caller.merchant_id, caller.env, filters)


@get("/v1/events/{event_id:str}", tags=["Webhooks"], described=path_id("event_id", "evt"))
async def get_event(
    event_id: FromPath[str], caller: WebhooksRead, services: NamedDependency[Services]
) -> Success[EventBody]:
    """One event."""
    return Success(data=await services.get(DeliveryService).event(caller.merchant_id, caller.env, event_id))


routes = (
    set_webhook,
    set_event_types,
    get_webhook,
    remove_webhook,
    rotate_secret,
    send_test,
    list_deliveries,
    get_delivery,
    replay_delivery,
    replay_deliveries,
    list_events,
    get_event,
)
