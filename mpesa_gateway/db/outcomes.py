"""Writes what a call to M-Pesa brought, and keeps in the process what Postgres cannot take until it can.

An outcome that is lost costs money: the payer has a prompt that nothing in the books names. Locked rows, lost
connections, deadlocks, a full pool and a restart of Postgres are therefore reasons to wait, not to give up.
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
"""Outcomes that one process keeps before it refuses new calls to M-Pesa. One takes about 2 KB."""

ANSWER_WITHIN = 2.5
"""Seconds that the caller, who waits for the answer of the API, gives a write."""

LOCK_WAIT = 1.0
"""Seconds that one attempt waits for a row that another session has locked."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two attempts to write the same outcome: the pause doubles."""


@dataclass(eq=False)
class _Kept:
    """An outcome that is not in Postgres yet. ``due`` is a time of the event loop, ``pause`` is in seconds."""

    what: str
    subject_id: str
    write: Callable[[], Awaitable[Any]]
    due: float
    pause: float = _FIRST_PAUSE


class OutcomeWriter:
    """The writes that follow calls to M-Pesa. A crash loses what is kept here; architecture.md 4 says what finds it.

    Each ``write`` must be idempotent: an attempt whose COMMIT got no answer may have been carried out.
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
        """The number of outcomes that are not in Postgres yet."""
        return len(self._kept)

    def require_room(self) -> None:
        """Raises ServiceUnavailable when too many outcomes wait: to be called before an intent is written."""
        if len(self._kept) >= MOST:
            raise ServiceUnavailable(
                "the gateway cannot write what M-Pesa answers at the moment, and sends nothing until it can: "
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
        """Write an outcome now; returns what ``write`` returns, or None where it is kept and will be written later.

        ``write`` runs in a transaction of its own. ``at_once`` is tried before it, outside any transaction, and
        returns None where it could not write. No exception of Postgres, of the network or of ``write`` is raised.
        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                if at_once is not None and (written := await _tried(at_once)) is not None:
                    return written
                return await self._attempt(write)
        except asyncio.CancelledError:
            self._keep(what, subject_id, write)
            raise
        except Exception as problem:  # noqa: BLE001 - whatever the reason is: what M-Pesa said must not be lost
            log.warning("outcome_buffered", what=what, subject_id=subject_id, error=type(problem).__name__)
            if not isinstance(problem, TimeoutError):
                log.info("outcome_not_written", what=what, subject_id=subject_id, exception=trace(problem))
            self._keep(what, subject_id, write)
            return None

    async def _attempt(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write in a transaction; at most one attempt at a time uses the reserve, which callbacks need as well."""
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
            # SET takes no parameters. A pooler keeps nothing of it: it ends with the transaction.
            await self._db.execute(f"SET LOCAL lock_timeout = {int(LOCK_WAIT * 1000)}")
            return await write()

    def _keep(self, what: str, subject_id: str, write: Callable[[], Awaitable[Any]]) -> None:
        self._counter.labels("kept").inc()
        loop = asyncio.get_running_loop()
        self._kept.append(_Kept(what, subject_id, write, loop.time() + _FIRST_PAUSE))
        if self._retrying is None or self._retrying.done():
            # In no caller's transaction, and with nothing that a caller has bound for the log.
            self._retrying = loop.create_task(self._retry(), context=Context())

    async def _retry(self) -> None:
        """Write what is kept, one after the other, until nothing is left."""
        loop = asyncio.get_running_loop()
        while self._kept:
            first = min(one.due for one in self._kept)
            await asyncio.sleep(max(0.0, first - loop.time()))
            for one in [one for one in self._kept if one.due <= loop.time()]:
                if not await self._write(one):
                    one.pause = min(one.pause * 2, _LONGEST_PAUSE)
                    one.due = loop.time() + one.pause

    async def _write(self, one: _Kept) -> bool:
        """Whether the outcome is in Postgres now."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._attempt(one.write)
        except Exception as problem:  # noqa: BLE001 - it stays kept, and is tried again
            level = log.info if isinstance(problem, UNREACHABLE) else log.warning
            level("outcome_still_kept", what=one.what, subject_id=one.subject_id, error=type(problem).__name__)
            return False
        self._kept.remove(one)
        self._counter.labels("written_late").inc()
        log.info("buffered_outcome_written", what=one.what, subject_id=one.subject_id)
        return True

    async def stop(self, grace: float) -> None:
        """Write what is kept, for at most ``grace`` seconds; what cannot be written then is lost, and logged."""
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
    """What ``at_once`` returns, None where it raises: the outcome is then written by itself."""
    try:
        return await at_once()
    except Exception as problem:  # noqa: BLE001 - an attempt of its own follows
        log.info("outcome_not_written_at_once", error=type(problem).__name__)
        return None
