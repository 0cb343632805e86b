"""What happened, in the past tense: the values that plugins publish and others hear about."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.env import Env

UNPUBLISHED = datetime(1, 1, 1, tzinfo=UTC)
"""``occurred_at`` before the outbox has stamped it."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact that one plugin publishes and others may subscribe to. The outbox fills the first two fields."""

    kind: ClassVar[str]
    """The stable name, ``payment.completed``: what the outbox stores and decodes by."""

    event_id: str = ""
    occurred_at: datetime = UNPUBLISHED
    merchant_id: str
    env: Env | None = None
    """The world that it happened in; None for what belongs to none, such as a callback that names nothing we know."""
    subject_id: str
    """The id of the object that the event is about, such as a payment's."""


class PublicEvent(Event, frozen=True, kw_only=True):
    """An event that merchants hear about: kept, listed, and delivered to their webhooks."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {}
    """What its fields hold in the reference's example, besides those that every event has."""

    env: Env  # pyright: ignore[reportGeneralTypeIssues] - required of what merchants hear

    def data(self) -> dict[str, Any]:
        """The ``data`` of the webhook body: JSON-ready values, money as decimal strings. ``env`` is added to it."""
        raise TypeError(f"{type(self).__name__} does not say what merchants get to see of it")
