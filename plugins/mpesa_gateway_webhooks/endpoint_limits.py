"""Lanes: each merchant's server has one of its own, so that nobody's webhooks wait for one that is slow or down."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

_QUICK = 0.5
"""Seconds after which a call that has not ended is one that waits, and costs nothing but its connection."""

WAITING_EACH = 10
"""Calls that may wait, for each slot: beyond that they keep their slots, for connections are not free either."""

ROOM = 64
"""Deliveries that are claimed for one endpoint before what else it is owed stays in Postgres for a while."""

_AHEAD = 20
"""Deliveries that are claimed in all, for each slot, before new ones stay there. Lanes that are stuck do not count."""


class EndpointLimit:
    """One endpoint, as far as this worker has to do with it now."""

    def __init__(self, per_endpoint: int, failures: int) -> None:
        """``per_endpoint`` bounds its calls at the same time; ``failures`` in a row are known in Postgres."""
        self.places = asyncio.Semaphore(per_endpoint)
        self.claimed = 0
        self.waiting = 0
        """Calls that have taken so long that they have given their slot back."""
        self.has_more = False
        """Whether deliveries were left in Postgres because there are enough of them here."""
        self.is_refilling = False
        self._failures = failures
        self._closed: tuple[datetime, datetime] | None = None

    def note(self, *, is_taken: bool, at: datetime, most: int, until: datetime) -> None:
        """How a call has ended. After ``most`` failures in a row the endpoint is left in peace ``until`` then."""
        self._failures = 0 if is_taken else self._failures + 1
        if is_taken:
            self._closed = None
        elif self._failures >= most:
            self._closed = (at, until)

    def is_closed(self, now: datetime) -> bool:
        """Whether we have learnt that the endpoint is to be left in peace now."""
        return self._closed is not None and self._closed[1] > now

    def closed_until(self, claimed_at: datetime, known: datetime | None) -> datetime | None:
        """Until when the endpoint is left in peace: what we learnt since, or what was ``known`` at the claim."""
        if self._closed is not None and self._closed[0] >= claimed_at:
            return self._closed[1]
        return known


class EndpointLimits:
    """All lanes that are in use, by endpoint, and the slots that they share: calls at the same time."""

    def __init__(self, *, at_once: int, per_endpoint: int, quick: float = _QUICK) -> None:
        """``quick`` is for how long a call has its slot for certain, in seconds."""
        self._per_endpoint = per_endpoint
        self._quick = quick
        self._slots = asyncio.Semaphore(at_once)
        self._most_waiting = at_once * WAITING_EACH
        self._most_ahead = at_once * _AHEAD
        self._lanes: dict[str, EndpointLimit] = {}
        self._waiting = 0
        self._ahead = 0
        self._eased = asyncio.Event()
        self._eased.set()

    def enter(self, endpoint_id: str, failures: int) -> EndpointLimit:
        """The endpoint's lane, with one more delivery in it."""
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            lane = self._lanes[endpoint_id] = EndpointLimit(self._per_endpoint, failures)
        lane.claimed += 1
        if not lane.waiting:
            self._count(1)
        return lane

    def leave(self, endpoint_id: str, lane: EndpointLimit) -> None:
        """One delivery fewer. A lane that nothing keeps is forgotten: Postgres knows the rest."""
        lane.claimed -= 1
        if not lane.waiting:
            self._count(-1)
        self.remove_if_idle(endpoint_id, lane)

    def remove_if_idle(self, endpoint_id: str, lane: EndpointLimit) -> None:
        """Forget a lane in which nothing is and nothing will be."""
        if not (lane.claimed or lane.has_more or lane.is_refilling):
            self._lanes.pop(endpoint_id, None)

    def full(self) -> list[str]:
        """Endpoints for which enough is claimed; that there is more is remembered."""
        found = [(endpoint_id, lane) for endpoint_id, lane in self._lanes.items() if lane.claimed >= ROOM]
        for _, lane in found:
            lane.has_more = True
        return [endpoint_id for endpoint_id, _ in found]

    @property
    def has_room(self) -> bool:
        """Whether more may be claimed."""
        return self._eased.is_set()

    async def room(self) -> None:
        """Wait while so much is claimed that more of it would only grow old here."""
        await self._eased.wait()

    @asynccontextmanager
    async def slot(self, lane: EndpointLimit) -> AsyncGenerator[None]:
        """A place in the lane and a slot, for the length of the block; a call that turns out to be slow keeps none."""
        async with lane.places:
            await self._slots.acquire()
            has_slot = True

            def give_back() -> None:
                nonlocal has_slot
                if self._waiting < self._most_waiting:
                    has_slot = False
                    self._waiting += 1
                    lane.waiting += 1
                    if lane.waiting == 1:
                        self._count(-lane.claimed)
                    self._slots.release()

            timer = asyncio.get_running_loop().call_later(self._quick, give_back)
            try:
                yield
            finally:
                timer.cancel()
                if has_slot:
                    self._slots.release()
                else:
                    self._waiting -= 1
                    lane.waiting -= 1
                    if not lane.waiting:
                        self._count(lane.claimed)

    def _count(self, more: int) -> None:
        self._ahead += more
        if self._ahead >= self._most_ahead:
            self._eased.clear()
        elif self._ahead <= self._most_ahead // 2:
            self._eased.set()
