"""A bound for one kind of expensive work: so much at once, so much of one client, and a short queue."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mpesa_gateway.errors import ServiceUnavailable

_RETRY_AFTER = 1


class WorkLimit:
    """Lets work begin in the order in which it came."""

    def __init__(self, at_once: int, *, each: int, queue: int, wait: float, pause: float = 0.0) -> None:
        """``each`` bounds one client's work, begun and waiting; ``queue`` what waits of all; ``wait`` is in seconds.

        For want of room a caller is refused after ``pause`` seconds, so that it does not try again at once.
        """
        self._free = asyncio.Semaphore(at_once)
        self._most = at_once + queue
        self._each = each
        self._wait = wait
        self._pause = pause
        self._here: Counter[str] = Counter()

    @asynccontextmanager
    async def acquire(self, who: str) -> AsyncGenerator[None]:
        """A block that is done in turn. Raises ServiceUnavailable where there is no room, or not in time."""
        if self._here[who] >= self._each or self._here.total() >= self._most:
            await asyncio.sleep(self._pause)
            raise _busy()
        self._here[who] += 1
        try:
            try:
                async with asyncio.timeout(self._wait):
                    await self._free.acquire()
            except TimeoutError:
                raise _busy() from None
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._here[who] -= 1
            if not self._here[who]:
                del self._here[who]


def _busy() -> ServiceUnavailable:
    return ServiceUnavailable("too many requests of this kind at once: try again", retry_after=_RETRY_AFTER)
