"""Webhooks as they go over the wire."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from mpesa_gateway.http.query import ListQuery, Moment

DeliveryStatus = Literal["pending", "delivered", "dead", "cancelled"]


class SetWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a merchant wants to hear of events."""

    webhook_url: str


class WebhookWithSecret(msgspec.Struct, frozen=True):
    """An endpoint at the one moment when its secret is shown."""

    webhook_url: str
    webhook_secret: str


class WebhookView(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and how it fares. ``failures`` counts failed attempts in a row."""

    webhook_url: str
    webhook_secret: str
    previous_secret_until: datetime | None
    failures: int
    paused_until: datetime | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    created_at: datetime


class TestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the merchant's server said to a test."""

    delivered: bool
    event_id: str
    status: int | None
    ms: int | None
    error: str | None
    answer: str


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP try."""

    id: str
    at: datetime
    status: int | None
    ms: int | None
    error: str | None
    answer: str


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one endpoint."""

    id: str
    event_id: str
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
    """A delivery with everything that was tried."""

    attempt_log: list[AttemptView]
    event: dict[str, Any]


class DeliveryQuery(ListQuery, frozen=True, kw_only=True):
    """The filters of the delivery log."""

    status: DeliveryStatus | None = None
    event_type: str | None = None
    payment_id: str | None = None


class EventQuery(ListQuery, frozen=True, kw_only=True):
    """The filters of the list of events."""

    type: str | None = None
    since: Moment | None = None
    until: Moment | None = None


class ReplayMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which deliveries to send again: those created since (and before ``until``)."""

    since: Moment
    until: Moment | None = None
    status: DeliveryStatus | None = None


class Replayed(msgspec.Struct, frozen=True):
    """How many deliveries will be sent again; ``has_more`` says that the request was larger than one call takes."""

    replayed: int
    has_more: bool
