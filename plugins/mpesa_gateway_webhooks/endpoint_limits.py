"""Limits of calls and claimed deliveries, per endpoint and in all."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

_QUICK = 0.5
"""Seconds after which a slow call releases its slot."""

WAITING_EACH = 10
"""Slow calls per slot; further ones keep their slots, since connections cost memory."""

ROOM = 64
"""Claimed deliveries per endpoint; the others stay in Postgres."""

_AHEAD = 20
"""Claimed deliveries per slot. Endpoints with slow calls do not count."""


class EndpointLimit:
    """One endpoint's calls and claimed deliveries in this worker."""

    def __init__(self, per_endpoint: int, failures: int) -> None:
        """``failures`` are consecutive and come from Postgres."""
        self.places = asyncio.Semaphore(per_endpoint)
        self.claimed = 0
        self.waiting = 0
        """Slow calls, which have released their slots."""
        self.has_more = False
        """True if deliveries were left in Postgres."""
        self.is_refilling = False
        self._failures = failures
        self._closed: tuple[datetime, datetime] | None = None

    def record_outcome(self, *, is_taken: bool, at: datetime, most: int, until: datetime) -> None:
        """Record an outcome. ``most`` consecutive failures pause the endpoint ``until`` then."""
        self._failures = 0 if is_taken else self._failures + 1
        if is_taken:
            self._closed = None
        elif self._failures >= most:
            self._closed = (at, until)

    def is_closed(self, now: datetime) -> bool:
        return self._closed is not None and self._closed[1] > now

    def closed_until(self, claimed_at: datetime, known: datetime | None) -> datetime | None:
        """Return the end of the pause: as recorded after ``claimed_at``, else ``known``."""
        if self._closed is not None and self._closed[0] >= claimed_at:
            return self._closed[1]
        return known


class EndpointLimits:
    """The limits of all endpoints, and their shared slots."""

    def __init__(self, *, at_once: int, per_endpoint: int, quick: float = _QUICK) -> None:
        """``quick`` is in seconds."""
        self._per_endpoint = per_endpoint
        self._quick = quick
        self._slots = asyncio.Semaphore(at_once)
        self._most_waiting = at_once * WAITING_EACH
        self._most_ahead = at_once * _AHEAD
        self._limits: dict[str, EndpointLimit] = {}
        self._waiting = 0
        self._ahead = 0
        self._eased = asyncio.Event()
        self._eased.set()

    def enter(self, endpoint_id: str, failures: int) -> EndpointLimit:
        """Return the endpoint's limit, with one more delivery."""
        limit = self._limits.get(endpoint_id)
        if limit is None:
            limit = self._limits[endpoint_id] = EndpointLimit(self._per_endpoint, failures)
        limit.claimed += 1
        if not limit.waiting:
            self._count(1)
        return limit

    def leave(self, endpoint_id: str, limit: EndpointLimit) -> None:
        limit.claimed -= 1
        if not limit.waiting:
            self._count(-1)
        self.remove_if_idle(endpoint_id, limit)

    def remove_if_idle(self, endpoint_id: str, limit: EndpointLimit) -> None:
        if not (limit.claimed or limit.has_more or limit.is_refilling):
            self._limits.pop(endpoint_id, None)

    def full(self) -> list[str]:
        """Return the endpoints at their limit, marked to have more."""
        found = [(endpoint_id, limit) for endpoint_id, limit in self._limits.items() if limit.claimed >= ROOM]
        for _, limit in found:
            limit.has_more = True
        return [endpoint_id for endpoint_id, _ in found]

    @property
    def has_room(self) -> bool:
        """True if more deliveries may be claimed."""
        return self._eased.is_set()

    async def wait_for_room(self) -> None:
        """Wait until more deliveries may be claimed."""
        await self._eased.wait()

    @asynccontextmanager
    async def slot(self, limit: EndpointLimit) -> AsyncGenerator[None]:
        """Hold a place and a shared slot; a slow call releases the slot early."""
        async with limit.places:
            await self._slots.acquire()
            has_slot = True

            def release_early() -> None:
                nonlocal has_slot
                if self._waiting < self._most_waiting:
                    has_slot = False
                    self._waiting += 1
                    limit.waiting += 1
                    if limit.waiting == 1:
                        self._count(-limit.claimed)
                    self._slots.release()

            timer = asyncio.get_running_loop().call_later(self._quick, release_early)
            try:
                yield
            finally:
                timer.cancel()
                if has_slot:
                    self._slots.release()
                else:
                    self._waiting -= 1
                    limit.waiting -= 1
                    if not limit.waiting:
                        self._count(limit.claimed)

    def _count(self, more: int) -> None:
        self._ahead += more
        if self._ahead >= self._most_ahead:
            self._eased.clear()
        elif self._ahead <= self._most_ahead // 2:
            self._eased.set()
