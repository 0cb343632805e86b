"""A limit for expensive work: concurrent, per client, and queued."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mpesa_gateway.errors import ServiceUnavailable

_RETRY_AFTER = 1


class WorkLimit:
    """Starts work in order of arrival."""

    def __init__(self, at_once: int, *, each: int, queue: int, wait: float, pause: float = 0.0) -> None:
        """``each`` is per client, with waiting work; ``wait`` is in seconds.

        Rejections are delayed by ``pause`` seconds.
        """
        self._free = asyncio.Semaphore(at_once)
        self._most = at_once + queue
        self._each = each
        self._wait = wait
        self._pause = pause
        self._active: Counter[str] = Counter()

    @asynccontextmanager
    async def acquire(self, client: str) -> AsyncGenerator[None]:
        """Raises ServiceUnavailable if full or after ``wait``."""
        if self._active[client] >= self._each or self._active.total() >= self._most:
            await asyncio.sleep(self._pause)
            raise _busy()
        self._active[client] += 1
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
            self._active[client] -= 1
            if not self._active[client]:
                del self._active[client]


def _busy() -> ServiceUnavailable:
    return ServiceUnavailable("too many requests of this kind at once: try again", retry_after=_RETRY_AFTER)
