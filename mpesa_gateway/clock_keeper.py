"""Compares the shared clock with Postgres' as long as a gateway runs."""

import asyncio
from datetime import timedelta

import structlog

from mpesa_gateway.clock import SharedClock
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE, Database

log = structlog.get_logger(__name__)

_AGREE_EVERY = 30.0
"""Seconds between two looks at Postgres' clock."""

_WRONG = timedelta(seconds=2)
"""How far a machine's clock may be from Postgres' before we say so."""


class ClockKeeper:
    """Keeps a clock in agreement with Postgres'."""

    def __init__(self, db: Database, clock: SharedClock) -> None:
        self._db = db
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Compare once, and then every 30 seconds. Raises what asyncpg raises when Postgres cannot be reached."""
        await self._agree()
        self._task = asyncio.create_task(self._keep_agreeing())

    async def stop(self) -> None:
        """Compare no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _agree(self) -> None:
        # raw SQL: function - the clock of Postgres.
        ahead = await self._clock.agree(lambda: self._db.fetchval("SELECT clock_timestamp()"))
        if abs(ahead) > _WRONG:
            log.warning("clock_skewed", seconds=round(ahead.total_seconds(), 1))

    async def _keep_agreeing(self) -> None:
        while True:
            await asyncio.sleep(_AGREE_EVERY)
            try:
                await self._agree()
            except (*UNREACHABLE, *OVERBURDENED) as problem:
                log.info("clock_not_compared", error=type(problem).__name__)
