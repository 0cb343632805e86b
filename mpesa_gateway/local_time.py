"""Times as people read and type them on pages: East Africa Time."""

from datetime import UTC, datetime
from typing import Literal

from mpesa_gateway.clock import EAT
from mpesa_gateway.phone import mask_phones

_ALLOWED = "choose a time such as 2026-11-30T19:00 (East Africa Time) or a date such as 2026-11-30"

_FORMATS = {
    "near": "{0.day} {0:%b %H:%M:%S}",
    "far": "{0.day} {0:%b %Y %H:%M}",
    "day": "{0.day} {0:%b %H:%M}",
    "clock": "{0:%H:%M}",
    "second": "{0:%H:%M:%S}",
    "date": "{0.day} {0:%b %Y}",
    "field": "{0:%Y-%m-%dT%H:%M:%S}",
}

_SHOWN = 40
"""Characters of rejected input in a message."""


def parse_local(text: str) -> datetime:
    """Return the UTC time of a text in East Africa Time, unless it states another zone.

    A date is its first second. Raises ValueError, which repeats the text.
    """
    typed = text.strip()
    try:
        moment = datetime.fromisoformat(typed)
        return (moment if moment.tzinfo else moment.replace(tzinfo=EAT)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"`{mask_phones(typed[:_SHOWN])}` is not a time: {_ALLOWED}") from None


def format_local(
    moment: datetime, style: Literal["near", "far", "day", "clock", "second", "date", "field"] = "far"
) -> str:
    """``near`` has seconds and no year; ``field`` is the value of a ``datetime-local`` field."""
    return _FORMATS[style].format(moment.astimezone(EAT))


def format_near(moment: datetime, now: datetime) -> str:
    """Return the clock time, with the day unless it is today's."""
    is_today = moment.astimezone(EAT).date() == now.astimezone(EAT).date()
    return format_local(moment, "clock" if is_today else "day")
