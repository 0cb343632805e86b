"""Rate limits for unknown callers: requests above the rate are delayed."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

LONGEST = 5.0
"""Seconds."""

_BURST = 2.0
"""Seconds of the rate."""

_TOGETHER = 4
"""The total rate as a multiple of an address's rate."""

_ALL = "all"

_MOST = 20_000
"""Stored addresses."""


class Throttle:
    """A token bucket per address and one for all.

    Sequential requests get this rate, or a fifth of the client's connections per second if higher.
    """

    def __init__(
        self,
        per_second: int,
        held: int,
        *,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """``held`` limits delayed requests, two thirds of it per address.

        ``chance`` returns 0 to 1 and spreads the delays of a burst.
        """
        self._interval = 1.0 / per_second
        self._burst = _BURST
        self._most_held = held
        self._now = now
        self._chance = chance
        self._due: dict[str, float] = {}
        """When each address's bucket is full."""
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        return self._held.total()

    async def admit(self, client: str, *, longest: float = LONGEST, together: bool = True) -> bool:
        """Wait for this address's turn, at most ``longest`` seconds. Returns False if too many wait.

        ``together`` also applies the total rate.
        """
        delay = self.delay(client)
        if together:
            delay = max(delay, self.delay(_ALL, _TOGETHER))
        delay = min(delay, longest)
        if delay <= 0:
            return True
        if self._held[client] >= max(1, self._most_held * 2 // 3) or self.held >= self._most_held:
            return False
        self._held[client] += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]
        return True

    def delay(self, client: str, times: int = 1) -> float:
        """Count a request and return its delay in seconds."""
        now = self._now()
        due = max(self._due.pop(client, now), now) + self._interval / times
        is_over = due > now + self._burst + LONGEST
        if is_over:
            due = now + self._burst + LONGEST
        if len(self._due) >= _MOST:
            self._forget(now)
        # Ordered by last request.
        self._due[client] = due
        if is_over:
            # Spread a burst instead of releasing it at once.
            return LONGEST * (1.0 - self._chance() / 2)
        return max(0.0, due - self._burst - now)

    def _forget(self, now: float) -> None:
        while self._due:
            oldest = next(iter(self._due))
            if self._due[oldest] > now and len(self._due) < _MOST:
                return
            del self._due[oldest]
