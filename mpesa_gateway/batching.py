"""Groups concurrent requests into one query."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 0.1
"""Seconds before waiting requests get another lane: longer than a query takes."""


class Batcher(Generic[T, R]):
    """Collects requests while a batch runs, and serves them in the next.

    If a batch is slow, as behind a lock, waiting requests get another lane.
    """

    def __init__(
        self,
        serve: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
        *,
        most: int = 64,
        lanes: int = 2,
        span: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """``serve`` returns a result or exception for each request, outside the callers' contexts and transactions.

        ``span`` is a block around each caller's wait.
        """
        self._serve = serve
        self._most = most
        self._lanes = lanes
        self._span = span
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._lanes_open = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, what: T) -> R:
        """Raise the exception of ``what``, if any. Cancelling the caller does not cancel it."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, answer))
        if not self._lanes_open:
            self._start_batch()
        else:
            self._schedule_flush()
        if self._span is None:
            return await answer
        with self._span():
            return await answer

    def _start_batch(self) -> None:
        self._lanes_open += 1
        task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _schedule_flush(self) -> None:
        if self._alarm is None and self._lanes_open < self._lanes:
            self._alarm = asyncio.get_running_loop().call_later(_PATIENCE, self._flush)

    def _flush(self) -> None:
        self._alarm = None
        if self._waiting and self._lanes_open < self._lanes:
            self._start_batch()

    async def _run(self) -> None:
        try:
            while self._waiting:
                served = self._waiting[: self._most]
                del self._waiting[: self._most]
                if self._alarm is not None:
                    self._alarm.cancel()
                    self._alarm = None
                if self._waiting:
                    self._schedule_flush()
                await self._run_batch(served)
        finally:
            # A request before the end of the task must find a free lane.
            self._lanes_open -= 1

    async def _run_batch(self, served: "list[tuple[T, asyncio.Future[R]]]") -> None:
        try:
            results = await self._serve([what for what, _ in served])
        except Exception as problem:  # noqa: BLE001 - raised by each caller
            results = [problem] * len(served)
        except BaseException:
            for _, answer in served:
                answer.cancel()
            raise
        for (_, answer), result in zip(served, results, strict=True):
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
