"""Work with a deadline that nothing can delay."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlineExceeded(TimeoutError):
    """The work was late, or too much work was running."""


class Deadline:
    """Runs work for a limited time, and at most ``most`` pieces at once.

    ``asyncio.timeout`` waits until the cancelled work has ended: a query on a connection that does not respond takes
    longer. Here late work is cancelled and left to end by itself.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of ``work``. Raises its error, or DeadlineExceeded."""
        if len(self._tasks) >= self._most:
            work.close()
            raise DeadlineExceeded(f"{self._most} pieces of work are running")
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise DeadlineExceeded(f"no result in {self._seconds} seconds")
        return task.result()

    async def stop(self) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Late work's error has no reader.
            task.exception()
