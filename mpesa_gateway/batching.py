"""Does at once what many callers want at the same time, so that under load one trip to Postgres serves them all."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 0.1
"""Seconds that those who wait leave to what is being served: more than a trip to Postgres takes on a busy machine."""


class Batcher(Generic[T, R]):
    """Gathers what is asked for while others are being served, and serves it next, all of it in one go.

    Nobody is kept waiting for company: who comes while nobody is served is served at once, alone. The busier it is,
    the more are served together. Where serving takes long, as behind a lock, those who wait get a lane of their own.
    """

    def __init__(
        self,
        serve: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
        *,
        most: int = 64,
        lanes: int = 2,
        told: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """``serve`` gives a result, or the exception to raise, for each of what it is given, ``most`` at a time.

        It runs outside its callers' contexts: in no transaction, and without what they have bound for the log. What
        it is to each of them is therefore told where they wait: ``told`` is the block that they wait in.
        """
        self._serve = serve
        self._most = most
        self._lanes = lanes
        self._told = told
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._lanes_open = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, what: T) -> R:
        """The result for ``what``; raises the exception that it got. A caller that goes away is served all the same."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, answer))
        if not self._lanes_open:
            self._start_batch()
        else:
            self._schedule_flush()
        if self._told is None:
            return await answer
        with self._told():
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
            # Here and not when the task is seen to be done: who asks in between must find a lane free.
            self._lanes_open -= 1

    async def _run_batch(self, served: "list[tuple[T, asyncio.Future[R]]]") -> None:
        try:
            results = await self._serve([what for what, _ in served])
        except Exception as problem:  # noqa: BLE001 - raised again by each of those who asked
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
