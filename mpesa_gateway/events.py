"""Events: values that plugins publish and subscribe to."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.env import Env

UNPUBLISHED = datetime(1, 1, 1, tzinfo=UTC)
"""``occurred_at`` before the event is published."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact that plugins may subscribe to. The outbox sets the first two fields."""

    kind: ClassVar[str]
    """Stable name: ``payment.completed``."""

    event_id: str = ""
    occurred_at: datetime = UNPUBLISHED
    merchant_id: str
    env: Env | None = None
    """None for events without an env, such as an unknown callback."""
    subject_id: str


class PublicEvent(Event, frozen=True, kw_only=True):
    """An event that is listed for merchants and sent to their webhooks."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {}
    """Example values for the reference."""

    env: Env  # pyright: ignore[reportGeneralTypeIssues] - required of what merchants hear

    def data(self) -> dict[str, Any]:
        """Return ``data`` of the webhook body, with money as decimal strings. ``env`` is added."""
        raise TypeError(f"{type(self).__name__} does not say what merchants get to see of it")
