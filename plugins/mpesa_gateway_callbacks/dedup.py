"""Recognises callbacks that were stored before: first in Valkey, then in Postgres, which also counts them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from datetime import timedelta
from typing import Any, cast

import structlog
from valkey.asyncio import Valkey
from valkey.exceptions import ValkeyError

from mpesa_gateway.db.engine import Database
from mpesa_gateway.logs import trace
from mpesa_gateway_callbacks import tables

log = structlog.get_logger(__name__)

_PATIENCE = 0.25
"""Seconds that a callback waits for Valkey before Postgres alone decides."""

_REST = 2.0
"""Seconds without asking after Valkey did not answer."""


class Dedup:
    """Fingerprints of committed callbacks. Valkey may be away or empty: the unique constraint decides then."""

    def __init__(self, *, valkey: Valkey, prefix: str, keep: timedelta) -> None:
        """``valkey`` returns the client of the running gateway; ``keep`` is how long a fingerprint is remembered."""
        self._valkey = valkey
        self._prefix = prefix
        self._keep = keep
        self._resting_until = 0.0
        self._noting: set[asyncio.Task[object]] = set()

    async def find_known(self, fingerprints: Sequence[bytes]) -> set[bytes]:
        """Return those of these fingerprints whose callbacks are known to be committed."""
        keys = [self._key(fingerprint) for fingerprint in fingerprints]
        found = await self._ask(lambda: self._valkey.mget(keys))
        marks = cast("list[bytes | None]", found or [None] * len(fingerprints))
        return {fingerprint for fingerprint, mark in zip(fingerprints, marks, strict=True) if mark is not None}

    def remember(self, fingerprints: Sequence[bytes]) -> None:
        """Note callbacks that have been committed, in a task of its own: Postgres knows them already."""
        if fingerprints:
            pipeline = self._valkey.pipeline(transaction=False)
            for fingerprint in fingerprints:
                pipeline.set(self._key(fingerprint), b"1", ex=self._keep)
            task = asyncio.create_task(self._ask(pipeline.execute))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)

    async def settle(self) -> None:
        """Wait until everything is noted."""
        await asyncio.gather(*self._noting)

    def _key(self, fingerprint: bytes) -> str:
        return f"{self._prefix}:callback:{fingerprint.hex()}"

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> object:
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await command()
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._resting_until = loop.time() + _REST
            log.warning("dedup_unavailable", error=type(problem).__name__)
            return None


class RepetitionCounter:
    """Counts how often stored callbacks came again. Waits for no lock: a locked row is counted later."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._uncounted: Counter[bytes] = Counter()
        self._counting: asyncio.Task[None] | None = None

    async def count(self, times: Counter[bytes]) -> set[bytes]:
        """Count repetitions of stored callbacks; returns the fingerprints that are stored."""
        fingerprints = sorted(times)
        rows = await self._db.fetch(tables.REPEATED, fingerprints, [times[one] for one in fingerprints])
        for row in rows:
            if not row["is_counted"]:
                self._count_later(bytes(row["fingerprint"]), times[row["fingerprint"]])
        return {bytes(row["fingerprint"]) for row in rows}

    async def count_where_possible(self, times: Counter[bytes]) -> set[bytes]:
        """Like ``count``, but returns no fingerprint on an error: each caller then asks for its own callback."""
        try:
            return await self.count(times)
        except Exception as problem:  # noqa: BLE001 - raised again for each repetition alone
            log.warning("duplicates_counted_singly", count=times.total(), exception=trace(problem))
            return set()

    async def stop(self) -> None:
        """Cancel the counting that is left."""
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)

    def _count_later(self, fingerprint: bytes, times: int) -> None:
        self._uncounted[fingerprint] += times
        if self._counting is None or self._counting.done():
            # One task for all of them: together they wait on one connection.
            self._counting = asyncio.create_task(self._count_uncounted(), context=Context())

    async def _count_uncounted(self) -> None:
        while self._uncounted:
            fingerprint, times = self._uncounted.popitem()
            try:
                await self._db.execute(tables.COUNT_REPEATED, [fingerprint], [times])
            except Exception as problem:  # noqa: BLE001 - a count for operators: the callback itself is stored
                log.warning("duplicate_not_counted", times=times, exception=trace(problem))
