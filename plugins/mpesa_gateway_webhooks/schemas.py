"""Requests and responses of the webhooks API."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.env import Environment
from mpesa_gateway.http.egress import LONGEST_URL
from mpesa_gateway.http.field_rules import checked_by_service, checked_with_plugins
from mpesa_gateway.http.fields import EventId, Masked, example_id, id_field, named
from mpesa_gateway.http.query import ListQuery, Moment
from mpesa_gateway_webhooks.events import chosen_types

DeliveryId = Annotated[str, id_field("dlv")]
AttemptId = Annotated[str, id_field("att")]
DeliveryStatus = Annotated[Literal["waiting", "pending", "delivered", "dead", "cancelled"], named("DeliveryStatus")]


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """An event as sent in a webhook. The fields of ``data`` depend on ``type``."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "type": "payment.completed",
        "data": {"payment_id": example_id("pay"), "amount": "500.00", "status": "completed", "receipt": "TKN4A1B2C3"},
    }

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"data": checked_by_service(type="object")}

    id: EventId
    type: str
    env: Environment
    created_at: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    data: msgspec.Raw


_EVENT_TYPES = checked_with_plugins(
    # An empty enumeration is no valid schema: without payments, no plugin has public events.
    lambda gateway: {"items": {"type": "string"} | ({"enum": types} if (types := chosen_types(gateway)) else {})},
    minItems=1,
    description="Names as in `type` of GET /v1/events; null for all. Tests always arrive.",
)


class SetWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A merchant's new endpoint. ``event_types`` limits the events that it takes."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "webhook_url": checked_by_service(
            format="uri",
            maxLength=LONGEST_URL,
            pattern="^[Hh][Tt][Tt][Pp][Ss]?://",
            description="A public https address (in the sandbox also http to this machine).",
        ),
        "event_types": _EVENT_TYPES,
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"webhook_url": "https://shop.example.co.ke/mpesa"}

    webhook_url: str
    event_types: list[str] | None = None


class SetEventTypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The events that the endpoint takes; null for all."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"event_types": _EVENT_TYPES}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "event_types": [
            "payment.completed",
            "payment.failed",
            "payment.mismatched",
            "payment.reversed",
            "refund.failed",
        ]
    }

    event_types: list[str] | None


class WebhookWithSecret(msgspec.Struct, frozen=True):
    """An endpoint with its secret, which is shown only once."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "webhook_url": "https://shop.example.co.ke/mpesa",
        "webhook_secret": "whsec_b3JkZXItMTA0MS1pcy1wYWlkLWJ5LWFtaW5h",
    }

    webhook_url: str
    webhook_secret: str
    env: Environment


class WebhookView(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and its health. ``failures`` counts consecutive failed attempts."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "webhook_url": "https://shop.example.co.ke/mpesa",
        "previous_secret_until": None,
        "failures": 0,
        "paused_until": None,
        "last_failure_at": None,
        "event_types": None,
    }

    env: Environment
    webhook_url: str
    webhook_secret: Masked
    previous_secret_until: datetime | None
    failures: int
    paused_until: datetime | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    event_types: list[str] | None
    created_at: datetime


class TestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The response of the merchant's server to a test."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"delivered": True, "status": 200, "ms": 84, "error": None, "answer": "OK"}

    env: Environment
    delivered: bool
    event_id: EventId
    status: int | None
    ms: int | None
    error: str | None
    answer: str


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request. ``url`` is the endpoint's address at that time."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"status": 200, "ms": 84, "error": None, "answer": "OK"}

    id: AttemptId
    at: datetime
    url: str
    status: int | None
    ms: int | None
    error: str | None
    answer: str


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """The delivery of one event to one endpoint; ``waiting`` while no endpoint is set in its env."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "event_type": "payment.completed",
        "payment_id": example_id("pay"),
        "status": "delivered",
        "last_status": 200,
        "last_error": None,
        "next_retry_at": None,
    }

    id: DeliveryId
    env: Environment
    event_id: EventId
    event_type: str
    payment_id: str
    status: DeliveryStatus
    attempts: int
    last_status: int | None
    last_error: str | None
    last_attempt_at: datetime | None
    next_retry_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None


class DeliveryWithAttempts(DeliveryView, frozen=True, kw_only=True):
    """A delivery with its attempts and its event."""

    attempt_log: list[AttemptView]
    event: EventBody


class DeliveryQuery(ListQuery, frozen=True, kw_only=True):
    """Filters of the delivery log."""

    status: DeliveryStatus | None = None
    event_type: str | None = None
    payment_id: str | None = None


class EventQuery(ListQuery, frozen=True, kw_only=True):
    """Filters of the list of events."""

    type: str | None = None
    since: Moment | None = None
    until: Moment | None = None


class ReplayMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The deliveries to send again: created from ``since`` on (and before ``until``)."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"since": "2026-11-23T00:00:00Z", "status": "dead"}

    since: Moment
    until: Moment | None = None
    status: DeliveryStatus | None = None


class Replayed(msgspec.Struct, frozen=True):
    """The number of deliveries to be sent again; ``has_more`` if the limit of one call was reached."""

    replayed: int
    has_more: bool
