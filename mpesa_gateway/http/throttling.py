"""How fast strangers may send requests, one address and all together: above a rate, each waits, and costs a timer."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

LONGEST = 5.0
"""Seconds that a request is delayed at most."""

_BURST = 2.0
"""Seconds of requests that an address may send at once after a pause."""

_TOGETHER = 4
"""How many times the rate of one address all addresses have together."""

_ALL = "all"
"""What all addresses together are counted as; no address."""

_MOST = 20_000
"""Addresses that are remembered; beyond that the oldest is forgotten."""


class Throttle:
    """A token bucket for each address, and one for all.

    A client that sends the next request on a connection once the last one is answered is slowed to the rate, or to a
    fifth of its connections a second where that is more.
    """

    def __init__(
        self,
        per_second: int,
        held: int,
        *,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """``held`` is how many requests are delayed at a time, two thirds of them of one address.

        ``chance`` gives numbers from 0 to 1; with them, what came at once is delayed by different times.
        """
        self._interval = 1.0 / per_second
        self._burst = _BURST
        self._most_held = held
        self._now = now
        self._chance = chance
        self._due: dict[str, float] = {}
        """By address, when its bucket is full again."""
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Requests that are delayed at this moment."""
        return self._held.total()

    async def admit(self, who: str, *, longest: float = LONGEST, together: bool = True) -> bool:
        """Wait as long as this address has to, ``longest`` seconds at most. Returns False where no more can wait.

        ``together`` says whether the request counts among those of all addresses.
        """
        delay = self.delay(who)
        if together:
            delay = max(delay, self.delay(_ALL, _TOGETHER))
        delay = min(delay, longest)
        if delay <= 0:
            return True
        if self._held[who] >= max(1, self._most_held * 2 // 3) or self.held >= self._most_held:
            return False
        self._held[who] += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]
        return True

    def delay(self, who: str, times: int = 1) -> float:
        """Count a request at so many times the rate, and return the seconds that it has to wait; at most LONGEST."""
        now = self._now()
        due = max(self._due.pop(who, now), now) + self._interval / times
        is_over = due > now + self._burst + LONGEST
        if is_over:
            due = now + self._burst + LONGEST
        if len(self._due) >= _MOST:
            self._forget(now)
        # At the end: the dictionary is in the order of the last request.
        self._due[who] = due
        if is_over:
            # What came at once does not go on at once.
            return LONGEST * (1.0 - self._chance() / 2)
        return max(0.0, due - self._burst - now)

    def _forget(self, now: float) -> None:
        while self._due:
            oldest = next(iter(self._due))
            if self._due[oldest] > now and len(self._due) < _MOST:
                return
            del self._due[oldest]
