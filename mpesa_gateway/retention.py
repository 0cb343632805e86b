"""Forgets what has been kept long enough: a little at a time, the oldest first, and never what is still owed."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog

from mpesa_gateway.db.engine import OVERBURDENED
from mpesa_gateway.plugin import Forgetting

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

FORGET_KEYS = """
DELETE FROM idempotency_key WHERE (merchant_id, env, key) IN (
    SELECT merchant_id, env, key FROM idempotency_key
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

KERNEL_FORGETS = (
    Forgetting("idempotency keys", FORGET_KEYS, days=lambda gateway: gateway.config.retention.idempotency_days),
    Forgetting(
        "subscribers' done tasks",
        FORGET_TASKS,
        days=lambda gateway: gateway.config.retention.tasks_days,
        prefix="evt",
    ),
)
"""What the kernel itself forgets; the audit log has a way of its own."""


class Retention:
    """Goes through everything that the settings let go. Run by two at once, each passes over what the other has."""

    def __init__(self, gateway: "Gateway", sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """``sleep`` waits so many seconds between two batches."""
        self._gateway = gateway
        self._sleep = sleep
        self._settings = gateway.config.retention

    async def forget(self) -> dict[str, int]:
        """Delete what is old enough, in batches that each commit by themselves; gives the counts by what it was.

        Tables by month lose whole months first, which are counted apart: nobody reads how many rows were in them.
        """
        counts: dict[str, int] = {}
        forgettings = [*KERNEL_FORGETS, *(one for plugin in self._gateway.plugins for one in plugin.forgets)]
        for forgetting in forgettings:
            before = self._before(forgetting.days(self._gateway))
            if before is None:
                continue
            oldest = self._gateway.ids.least(forgetting.prefix, before) if forgetting.prefix else before
            counts[forgetting.what] = await self._repeat(forgetting.what, partial(self._batch, forgetting.sql, oldest))
        for monthly in (one for plugin in self._gateway.plugins for one in plugin.months):
            before = self._before(monthly.days(self._gateway))
            if before is None:
                continue
            months = self._gateway.months
            counts[f"{monthly.what}: months"] = await months.drop(monthly, before)
            batch = partial(months.forget, monthly, before, self._settings.batch)
            counts[monthly.what] = await self._repeat(monthly.what, batch)
        if await self._may_cut():
            await self._gateway.audit.announce_cut()
            counts["audit entries"] = await self._repeat("audit entries", self._gateway.audit.cut)
        log.info("retention_finished", counts={what: count for what, count in counts.items() if count})
        return counts

    async def _may_cut(self) -> bool:
        """Whether Postgres keeps the audit log as long as the settings say: it is told by ``mpesa-gateway migrate``."""
        days = self._settings.audit_days
        stored = await self._gateway.db.fetchval("SELECT keep_days FROM audit_policy")
        if stored != days:
            log.warning("audit_days_differ", setting=days, stored=stored, fix="run `mpesa-gateway migrate`")
        return days > 0 and stored >= days

    def _before(self, days: int) -> datetime | None:
        return self._gateway.clock.now() - timedelta(days=days) if days else None

    async def _batch(self, sql: str, oldest: datetime | str) -> int:
        tag = await self._gateway.db.execute(sql, oldest, self._settings.batch)
        return int(tag.rpartition(" ")[2])

    async def _repeat(self, what: str, batch: Callable[[], Awaitable[int]]) -> int:
        """Batch after batch until one finds nothing, or Postgres has no room for it: there will be another night."""
        count = 0
        try:
            while gone := await batch():
                count += gone
                await self._sleep(self._settings.pause)
        except OVERBURDENED as problem:
            log.warning("retention_put_off", what=what, count=count, error=type(problem).__name__)
        return count
