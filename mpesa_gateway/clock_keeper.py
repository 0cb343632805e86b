"""Keeps the shared clock in agreement with Postgres."""

import asyncio
from datetime import timedelta

import structlog

from mpesa_gateway.clock import SharedClock
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE, Database

log = structlog.get_logger(__name__)

_AGREE_EVERY = 30.0
"""Seconds."""

_WRONG = timedelta(seconds=2)


class ClockKeeper:
    """Compares the clocks every 30 seconds."""

    def __init__(self, db: Database, clock: SharedClock) -> None:
        self._db = db
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._agree()
        self._task = asyncio.create_task(self._keep_agreeing())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _agree(self) -> None:
        # raw SQL: function - the clock of Postgres.
        ahead = await self._clock.synchronize(lambda: self._db.fetchval("SELECT clock_timestamp()"))
        if abs(ahead) > _WRONG:
            log.warning("clock_skewed", seconds=round(ahead.total_seconds(), 1))

    async def _keep_agreeing(self) -> None:
        while True:
            await asyncio.sleep(_AGREE_EVERY)
            try:
                await self._agree()
            except (*UNREACHABLE, *OVERLOADED) as problem:
                log.info("clock_not_compared", error=type(problem).__name__)
