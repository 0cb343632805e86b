"""Detection of duplicate callbacks, in Valkey and Postgres."""

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

_TIMEOUT = 0.25
"""Seconds to wait for Valkey; then only Postgres decides."""

_COOLDOWN = 2.0
"""Seconds without requests to Valkey after a failure."""


class Dedup:
    """Fingerprints of committed callbacks. Without Valkey the unique constraint in Postgres decides."""

    def __init__(self, *, valkey: Valkey, prefix: str, keep: timedelta) -> None:
        """Keep fingerprints for ``keep``."""
        self._valkey = valkey
        self._prefix = prefix
        self._keep = keep
        self._unavailable_until = 0.0
        self._tasks: set[asyncio.Task[object]] = set()

    async def find_known(self, fingerprints: Sequence[bytes]) -> set[bytes]:
        """Return the fingerprints known to be committed; none without Valkey."""
        keys = [self._key(fingerprint) for fingerprint in fingerprints]
        found = await self._run(lambda: self._valkey.mget(keys))
        marks = cast("list[bytes | None]", found or [None] * len(fingerprints))
        return {fingerprint for fingerprint, mark in zip(fingerprints, marks, strict=True) if mark is not None}

    def remember(self, fingerprints: Sequence[bytes]) -> None:
        """Store fingerprints of committed callbacks in the background."""
        if fingerprints:
            pipeline = self._valkey.pipeline(transaction=False)
            for fingerprint in fingerprints:
                pipeline.set(self._key(fingerprint), b"1", ex=self._keep)
            task = asyncio.create_task(self._run(pipeline.execute))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for the background tasks."""
        await asyncio.gather(*self._tasks)

    def _key(self, fingerprint: bytes) -> str:
        return f"{self._prefix}:callback:{fingerprint.hex()}"

    async def _run(self, command: Callable[[], Awaitable[Any]]) -> object:
        loop = asyncio.get_running_loop()
        if loop.time() < self._unavailable_until:
            return None
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await command()
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._unavailable_until = loop.time() + _COOLDOWN
            log.warning("dedup_unavailable", error=type(problem).__name__)
            return None


class RepetitionCounter:
    """Counts duplicates, without waiting for locks: a locked row is counted later."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._uncounted: Counter[bytes] = Counter()
        self._counting: asyncio.Task[None] | None = None

    async def count(self, times: Counter[bytes]) -> set[bytes]:
        """Returns the fingerprints that are stored."""
        fingerprints = sorted(times)
        rows = await self._db.fetch(tables.REPEATED, fingerprints, [times[one] for one in fingerprints])
        for row in rows:
            if not row["is_counted"]:
                self._count_later(bytes(row["fingerprint"]), times[row["fingerprint"]])
        return {bytes(row["fingerprint"]) for row in rows}

    async def count_where_possible(self, times: Counter[bytes]) -> set[bytes]:
        """Like ``count``, but empty on an error: each caller then checks its own callback."""
        try:
            return await self.count(times)
        except Exception as problem:  # noqa: BLE001 - raised again when each duplicate is checked alone
            log.warning("duplicates_counted_singly", count=times.total(), exception=trace(problem))
            return set()

    async def stop(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)

    def _count_later(self, fingerprint: bytes, times: int) -> None:
        self._uncounted[fingerprint] += times
        if self._counting is None or self._counting.done():
            # One task, and so one connection.
            self._counting = asyncio.create_task(self._count_uncounted(), context=Context())

    async def _count_uncounted(self) -> None:
        while self._uncounted:
            fingerprint, times = self._uncounted.popitem()
            try:
                await self._db.execute(tables.COUNT_REPEATED, [fingerprint], [times])
            except Exception as problem:  # noqa: BLE001 - only a count is lost: the callback itself is stored
                log.warning("duplicate_not_counted", times=times, exception=trace(problem))
