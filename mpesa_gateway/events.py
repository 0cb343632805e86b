"""Events that plugins publish."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.env import Env

UNPUBLISHED = datetime(1, 1, 1, tzinfo=UTC)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact for subscribers. The outbox sets the first two fields."""

    kind: ClassVar[str]
    """Stable: ``payment.completed``."""

    event_id: str = ""
    occurred_at: datetime = UNPUBLISHED
    merchant_id: str
    env: Env | None = None
    """None if unknown."""
    subject_id: str


class PublicEvent(Event, frozen=True, kw_only=True):
    """An event that is sent to merchants' webhooks."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {}

    CONSTANTS: ClassVar[frozenset[str]] = frozenset()
    """Values that most events of this kind have, and no personal ones: they are stored once for all."""

    reports_money: ClassVar[bool] = False
    """True for moved money: operators are warned of an endpoint that does not take this event."""

    env: Env  # pyright: ignore[reportGeneralTypeIssues] - required of what merchants hear

    def data(self) -> dict[str, Any]:
        """Return ``data`` of the webhook body. Money is decimal strings; ``env`` is added."""
        raise TypeError(f"{type(self).__name__} does not define its data for merchants")
