"""Clocks, and East Africa Time for Daraja."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Protocol

EAT = timezone(timedelta(hours=3), "EAT")
"""UTC+3 all year, in every Daraja timestamp."""


class Clock(Protocol):
    """Returns the current time in UTC."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SharedClock:
    """The clock of Postgres, advanced by a monotonic counter.

    A wrong machine clock must not affect other processes' leases.
    """

    def __init__(self, machine: Clock | None = None, count: Callable[[], float] = time.monotonic) -> None:
        self._machine = machine or SystemClock()
        self._count = count
        self._anchor: tuple[datetime, float] | None = None

    @property
    def machine(self) -> Clock:
        return self._machine

    def now(self) -> datetime:
        if self._anchor is None:
            return self._machine.now()
        at, counted = self._anchor
        return at + timedelta(seconds=self._count() - counted)

    async def synchronize(self, ask: Callable[[], Awaitable[datetime]]) -> timedelta:
        """Compare with Postgres; return how far the machine's clock is ahead.

        Differences within the duration of the query are ignored.
        """
        began = self._count()
        theirs = (await ask()).astimezone(UTC)
        ended = self._count()
        doubt = timedelta(seconds=(ended - began) / 2)
        theirs += doubt
        if self._anchor is None or abs(self.now() - theirs) > doubt + _GOOD_ENOUGH:
            self._anchor = (theirs, ended)
        return self._machine.now() - theirs


_GOOD_ENOUGH = timedelta(milliseconds=100)


class SetClock:
    """A clock that tests set."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, by: timedelta) -> None:
        self._at += by


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def daraja_timestamp(moment: datetime) -> str:
    return moment.astimezone(EAT).strftime("%Y%m%d%H%M%S")


def from_daraja_timestamp(text: str) -> datetime:
    """Parse ``YYYYMMDDHHmmss`` in East Africa Time. Raises ValueError."""
    if len(text) != 14 or not text.isdigit() or not text.isascii():
        raise ValueError("not a Daraja timestamp (YYYYMMDDHHmmss)")
    return datetime.fromisoformat(f"{text[:8]}T{text[8:]}").replace(tzinfo=EAT).astimezone(UTC)


def seconds_since(moment: datetime | None, clock: Clock) -> float:
    return 0.0 if moment is None else max((clock.now() - moment).total_seconds(), 0.0)
