"""How fast one address may send requests that nothing vouches for: above a rate, each waits, and costs a timer only."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

LONGEST = 1.0
"""Seconds that a request is delayed at most."""

_BURST = 2.0
"""Seconds of requests that an address may send at once after a pause."""

_MOST = 20_000
"""Addresses that are remembered; beyond that the oldest is forgotten."""


class Pace:
    """A token bucket for each address. A closed loop of requests is slowed to about its connections a second."""

    def __init__(self, per_second: int, held: int, *, now: Callable[[], float] = time.monotonic) -> None:
        """``held`` is how many requests are delayed at a time, half of them of one address."""
        self._interval = 1.0 / per_second
        self._burst = _BURST
        self._most_held = held
        self._now = now
        self._due: dict[str, float] = {}
        """By address, when its bucket is full again."""
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Requests that are delayed at this moment."""
        return self._held.total()

    async def admit(self, who: str, *, longest: float = LONGEST) -> bool:
        """Wait as long as this address has to, ``longest`` seconds at most. Returns False where no more can wait."""
        delay = min(self.delay(who), longest)
        if delay <= 0:
            return True
        if self._held[who] >= max(1, self._most_held // 2) or self.held >= self._most_held:
            return False
        self._held[who] += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]
        return True

    def delay(self, who: str) -> float:
        """Count a request, and return the seconds that it has to wait; at most LONGEST."""
        now = self._now()
        due = max(self._due.pop(who, now), now) + self._interval
        due = min(due, now + self._burst + LONGEST)
        if len(self._due) >= _MOST:
            self._forget(now)
        # At the end: the dictionary is in the order of the last request.
        self._due[who] = due
        return max(0.0, due - self._burst - now)

    def _forget(self, now: float) -> None:
        while self._due:
            oldest = next(iter(self._due))
            if self._due[oldest] > now and len(self._due) < _MOST:
                return
            del self._due[oldest]
