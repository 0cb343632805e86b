"""Times as people read and type them on pages: East Africa Time."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from mpesa_gateway.clock import EAT

_ALLOWED = "choose a time such as 2026-11-30T19:00 (East Africa Time) or a date such as 2026-11-30"

UNTIL = "until"
"""The name of filters that end before a time."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_SPACED_ZONE = re.compile(r"([Tt ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?) (\d\d:\d\d)\Z", re.ASCII)

_FORMATS = {
    "near": "{0.day} {0:%b %H:%M:%S}",
    "far": "{0.day} {0:%b %Y %H:%M}",
    "day": "{0.day} {0:%b %H:%M}",
    "clock": "{0:%H:%M}",
    "second": "{0:%H:%M:%S}",
    "date": "{0.day} {0:%b %Y}",
    "field": "{0:%Y-%m-%dT%H:%M:%S}",
}


def parse_local(text: str, *, is_end: bool = False) -> datetime:
    """Return the UTC time of a text in East Africa Time, unless it states another zone.

    A date is its beginning, with ``is_end`` the beginning of the next day. Raises ValueError without the text.
    """
    # An unencoded plus sign arrives as a space.
    typed = _SPACED_ZONE.sub(r"\1+\2", text.strip())
    try:
        moment = datetime.fromisoformat(typed)
        if is_end and _DATE.fullmatch(typed) is not None:
            moment += timedelta(days=1)
        return (moment if moment.tzinfo else moment.replace(tzinfo=EAT)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"this is not a time: {_ALLOWED}") from None


def format_local(
    moment: datetime, style: Literal["near", "far", "day", "clock", "second", "date", "field"] = "far"
) -> str:
    """``near`` has seconds and no year; ``field`` is the value of a ``datetime-local`` field."""
    return _FORMATS[style].format(moment.astimezone(EAT))


def format_near(moment: datetime, now: datetime) -> str:
    """Return the clock time, with the day unless it is today's."""
    is_today = moment.astimezone(EAT).date() == now.astimezone(EAT).date()
    return format_local(moment, "clock" if is_today else "day")
