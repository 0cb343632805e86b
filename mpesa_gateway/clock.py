"""Time, passed in: the real clock, one that tests set, and East Africa Time for Daraja."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Protocol

EAT = timezone(timedelta(hours=3), "EAT")
"""East Africa Time, UTC+3 all year: what every Daraja timestamp means."""


class Clock(Protocol):
    """Something that knows what time it is, in UTC."""

    def now(self) -> datetime:
        """The present moment, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The present moment, aware, in UTC."""
        return datetime.now(UTC)


class SetClock:
    """A clock that stands where it was set, for tests."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        """Where the clock stands, in UTC."""
        return self._at

    def advance(self, by: timedelta) -> None:
        """Move the clock forward."""
        self._at += by


def rfc3339(moment: datetime) -> str:
    """A moment as the API shows it: ``2026-11-23T10:15:12.000000Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def daraja_timestamp(moment: datetime) -> str:
    """A moment as Daraja wants it: ``YYYYMMDDHHmmss`` in East Africa Time."""
    return moment.astimezone(EAT).strftime("%Y%m%d%H%M%S")


def from_daraja_timestamp(text: str) -> datetime:
    """Read ``YYYYMMDDHHmmss`` in East Africa Time; raises ValueError for anything else."""
    if len(text) != 14 or not text.isdigit() or not text.isascii():
        raise ValueError("not a Daraja timestamp (YYYYMMDDHHmmss)")
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=EAT).astimezone(UTC)
