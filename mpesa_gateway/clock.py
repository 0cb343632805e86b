"""Time, passed in: the clock that all processes share, one that tests set, and East Africa Time for Daraja."""

import time
from collections.abc import Awaitable, Callable
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


class SharedClock:
    """Postgres' clock, carried on between two looks at it by what the machine counts since it was started.

    What one process writes, others compare with their own time: leases, due times, pauses. A machine whose clock is
    wrong, or is set right while it works, must not hold up the others' work. Until the first look it is the machine's.
    """

    def __init__(self, machine: Clock | None = None, count: Callable[[], float] = time.monotonic) -> None:
        """``count`` gives seconds that only ever go forward."""
        self._machine = machine or SystemClock()
        self._count = count
        self._anchor: tuple[datetime, float] | None = None

    @property
    def machine(self) -> Clock:
        """This machine's own clock."""
        return self._machine

    def now(self) -> datetime:
        """The present moment, aware, in UTC."""
        if self._anchor is None:
            return self._machine.now()
        at, counted = self._anchor
        return at + timedelta(seconds=self._count() - counted)

    async def agree(self, ask: Callable[[], Awaitable[datetime]]) -> timedelta:
        """Ask Postgres for its time; gives by how much the machine's clock is ahead of it.

        A difference that the length of the question explains changes nothing: time does not jump for a few
        milliseconds. Raises what asking raises.
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
"""How far two clocks may be apart and still be called one."""


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
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def daraja_timestamp(moment: datetime) -> str:
    """A moment as Daraja wants it: ``YYYYMMDDHHmmss`` in East Africa Time."""
    return moment.astimezone(EAT).strftime("%Y%m%d%H%M%S")


def from_daraja_timestamp(text: str) -> datetime:
    """Read ``YYYYMMDDHHmmss`` in East Africa Time; raises ValueError for anything else."""
    if len(text) != 14 or not text.isdigit() or not text.isascii():
        raise ValueError("not a Daraja timestamp (YYYYMMDDHHmmss)")
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=EAT).astimezone(UTC)


def seconds_since(moment: datetime | None, clock: Clock) -> float:
    """How long ago that was, in seconds; 0 for never, and for what is still to come."""
    return 0.0 if moment is None else max((clock.now() - moment).total_seconds(), 0.0)
