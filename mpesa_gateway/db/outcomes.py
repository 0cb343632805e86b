"""Stores outcomes of calls to M-Pesa, in memory while Postgres is unavailable.

Without its outcome, a payer has a prompt that no row names.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from prometheus_client import Counter

from mpesa_gateway.db.engine import UNREACHABLE, Database, reserve
from mpesa_gateway.errors import ServiceUnavailable
from mpesa_gateway.logs import trace

log = structlog.get_logger(__name__)

T = TypeVar("T")

MOST = 2_000
"""Pending outcomes, 2 KB each, before calls are rejected."""

ANSWER_WITHIN = 2.5
"""Seconds while an API client waits."""

LOCK_WAIT = 1.0
"""Seconds for a locked row."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds; doubled each time."""


@dataclass(eq=False)
class _Kept:
    """``due`` is a time of the event loop, ``pause`` is in seconds."""

    what: str
    subject_id: str
    write: Callable[[], Awaitable[Any]]
    due: float
    pause: float = _FIRST_PAUSE


class OutcomeWriter:
    """Stores outcomes. A crash loses pending ones (architecture.md 4).

    ``write`` must be idempotent: a COMMIT without an answer may have succeeded.
    """

    def __init__(self, db: Database, counter: Counter) -> None:
        """``counter`` has the label ``state``."""
        self._db = db
        self._counter = counter
        self._kept: list[_Kept] = []
        self._retrying: asyncio.Task[None] | None = None
        self._uses_reserve = False

    @property
    def kept(self) -> int:
        return len(self._kept)

    def require_room(self) -> None:
        """Call it before storing an intent. Raises ServiceUnavailable."""
        if len(self._kept) >= MOST:
            raise ServiceUnavailable(
                "the gateway cannot store M-Pesa's answers now, and sends no requests until it can: "
                "try again with the same Idempotency-Key",
                retry_after=5,
            )

    async def record(
        self,
        what: str,
        subject_id: str,
        write: Callable[[], Awaitable[T]],
        *,
        at_once: Callable[[], Awaitable[T | None]] | None = None,
    ) -> T | None:
        """Return the result of ``write``, or None if it is pending. Never raises its errors.

        ``write`` has its own transaction. ``at_once``, tried first, has none and returns None if it failed.
        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                if at_once is not None and (written := await _tried(at_once)) is not None:
                    return written
                return await self._attempt(write)
        except asyncio.CancelledError:
            self._keep(what, subject_id, write)
            raise
        except Exception as problem:  # noqa: BLE001 - M-Pesa's answer must not be lost
            log.warning("outcome_buffered", what=what, subject_id=subject_id, error=type(problem).__name__)
            if not isinstance(problem, TimeoutError):
                log.info("outcome_not_written", what=what, subject_id=subject_id, exception=trace(problem))
            self._keep(what, subject_id, write)
            return None

    async def _attempt(self, write: Callable[[], Awaitable[T]]) -> T:
        if self._uses_reserve:
            return await self._in_transaction(write)
        self._uses_reserve = True
        try:
            with reserve():
                return await self._in_transaction(write)
        finally:
            self._uses_reserve = False

    async def _in_transaction(self, write: Callable[[], Awaitable[T]]) -> T:
        async with self._db.transaction():
            # SET takes no parameters. LOCAL works behind a pooler.
            await self._db.execute(f"SET LOCAL lock_timeout = {int(LOCK_WAIT * 1000)}")
            return await write()

    def _keep(self, what: str, subject_id: str, write: Callable[[], Awaitable[Any]]) -> None:
        self._counter.labels("kept").inc()
        loop = asyncio.get_running_loop()
        self._kept.append(_Kept(what, subject_id, write, loop.time() + _FIRST_PAUSE))
        if self._retrying is None or self._retrying.done():
            # Without the caller's transaction and log values.
            self._retrying = loop.create_task(self._retry(), context=Context())

    async def _retry(self) -> None:
        loop = asyncio.get_running_loop()
        while self._kept:
            first = min(one.due for one in self._kept)
            await asyncio.sleep(max(0.0, first - loop.time()))
            for one in [one for one in self._kept if one.due <= loop.time()]:
                if not await self._write(one):
                    one.pause = min(one.pause * 2, _LONGEST_PAUSE)
                    one.due = loop.time() + one.pause

    async def _write(self, one: _Kept) -> bool:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._attempt(one.write)
        except Exception as problem:  # noqa: BLE001 - retried later
            level = log.info if isinstance(problem, UNREACHABLE) else log.warning
            level("outcome_still_kept", what=one.what, subject_id=one.subject_id, error=type(problem).__name__)
            return False
        self._kept.remove(one)
        self._counter.labels("written_late").inc()
        log.info("buffered_outcome_written", what=one.what, subject_id=one.subject_id)
        return True

    async def stop(self, grace: float) -> None:
        """Write for at most ``grace`` seconds; log lost outcomes."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)
            self._retrying = None
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        while self._kept and loop.time() < end:
            for one in list(self._kept):
                try:
                    async with asyncio.timeout_at(end):
                        await self._write(one)
                except TimeoutError:
                    break
            if self._kept:
                await asyncio.sleep(min(_FIRST_PAUSE, max(0.0, end - loop.time())))
        for one in self._kept:
            self._counter.labels("lost").inc()
            log.error("outcome_lost", what=one.what, subject_id=one.subject_id)
        self._kept.clear()


async def _tried(at_once: Callable[[], Awaitable[T | None]]) -> T | None:
    try:
        return await at_once()
    except Exception as problem:  # noqa: BLE001 - followed by an attempt of its own
        log.info("outcome_not_written_at_once", error=type(problem).__name__)
        return None
