"""Deletes expired rows in batches, oldest first."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial

import structlog

from mpesa_gateway.db.engine import OVERLOADED
from mpesa_gateway.plugin import RetentionRule
from mpesa_gateway.runtime import Runtime

log = structlog.get_logger(__name__)

# raw SQL: lock - several workers delete at once.
DELETE_KEYS = """
DELETE FROM idempotency_key WHERE digest IN (
    SELECT digest FROM idempotency_key
    WHERE created_at < $1 AND (state <> 'in_flight' OR leased_until < $1)
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FORGET_TASKS = """
DELETE FROM event_task WHERE (event_id, subscriber) IN (
    SELECT event_id, subscriber FROM event_task WHERE event_id < $1 AND done_at IS NOT NULL
    ORDER BY event_id, subscriber LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

KERNEL_RETENTION = (
    RetentionRule("idempotency keys", DELETE_KEYS, days=lambda runtime: runtime.config.retention.idempotency_days),
    RetentionRule(
        "subscribers' done tasks",
        FORGET_TASKS,
        days=lambda runtime: runtime.config.retention.tasks_days,
        prefix="evt",
    ),
)
"""The audit log has its own retention."""


class Retention:
    """Deletes expired rows and skips locked ones."""

    def __init__(self, runtime: Runtime, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._runtime = runtime
        self._sleep = sleep
        self._settings = runtime.config.retention

    async def delete_expired(self) -> dict[str, int]:
        """Commit each batch; return counts."""
        counts: dict[str, int] = {}
        rules = [*KERNEL_RETENTION, *self._runtime.contributed(RetentionRule)]
        for rule in rules:
            days = rule.days(self._runtime)
            if not days:
                continue
            before = self._runtime.clock.now() - timedelta(days=days)
            oldest = self._runtime.ids.least(rule.prefix, before) if rule.prefix else before
            counts[rule.what] = await self._repeat(rule.what, partial(self._batch, rule.sql, oldest))
        if await self._may_cut():
            await self._runtime.audit.announce_cut()
            counts["audit entries"] = await self._repeat("audit entries", self._runtime.audit.cut)
        log.info("retention_finished", counts={what: count for what, count in counts.items() if count})
        return counts

    async def _may_cut(self) -> bool:
        """``mpesa-gateway migrate`` stores the retention."""
        days = self._settings.audit_days
        stored = await self._runtime.audit.keep_days()
        if stored != days:
            log.warning("audit_days_differ", setting=days, stored=stored, fix="run `mpesa-gateway migrate`")
        return days > 0 and stored is not None and stored >= days

    async def _batch(self, sql: str, oldest: datetime | str) -> int:
        tag = await self._runtime.db.execute(sql, oldest, self._settings.batch)
        return int(tag.rpartition(" ")[2])

    async def _repeat(self, what: str, batch: Callable[[], Awaitable[int]]) -> int:
        """The next night continues if Postgres is busy."""
        count = 0
        try:
            while deleted := await batch():
                count += deleted
                await self._sleep(self._settings.pause)
        except OVERLOADED as problem:
            log.warning("retention_deferred", what=what, count=count, error=type(problem).__name__)
        return count
