"""Expiry of payments, without requests to M-Pesa."""

from datetime import datetime, timedelta

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import UNREACHABLE, Database, Row
from mpesa_gateway.logs import trace
from mpesa_gateway_payments import due_sql
from mpesa_gateway_payments.decisions import Expired
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.unacknowledged import UnacknowledgedPushes

log = structlog.get_logger(__name__)

_BATCH = 500
"""Payments per transaction."""

_AT_MOST = 50
"""Batches per run."""


class Expiry:
    """Ends payments after their time: expired, never sent, or unconfirmed."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: PaymentsSettings,
        transitions: Transitions,
        unacknowledged: UnacknowledgedPushes,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._transitions = transitions
        self._unacknowledged = unacknowledged

    async def end_due(self) -> int:
        """End every payment past ``expires_at`` or never acknowledged; return their number.

        Makes no requests. Skips locked rows. A payment that fails to end delays no other.
        """
        ended = await self._unacknowledged.close_due()
        failed: list[str] = []
        for _ in range(_AT_MOST):
            try:
                count, has_more = await self._end_batch(failed)
            except UNREACHABLE:
                raise
            except Exception as problem:  # noqa: BLE001 - one payment caused it: each is tried alone
                log.error("payments_expired_singly", exception=trace(problem))
                count, has_more = await self._end_each(failed)
            ended += count
            if not has_more:
                break
        return ended

    async def _end_batch(self, except_for: list[str]) -> tuple[int, bool]:
        """Return the number of ended payments, and True if there may be more."""
        async with self._db.transaction():
            now = self._clock.now()
            rows = await self._db.fetch(due_sql.LOCK_EXPIRED, now, _BATCH, except_for)
            reasons = await due_sql.read_unsent_reasons(self._db, rows)
            await self._transitions.apply_batch(
                [(row, Expired(self.next_query_at(row, now), reasons.get(row["payment_id"]))) for row in rows]
            )
        return len(rows), len(rows) == _BATCH

    async def _end_each(self, failed: list[str]) -> tuple[int, bool]:
        for count in range(_BATCH):
            row: Row | None = None
            try:
                async with self._db.transaction():
                    row = await self._db.fetchrow(due_sql.LOCK_EXPIRED, self._clock.now(), 1, failed)
                    if row is None:
                        return count, False
                    await self.end(row)
            except UNREACHABLE:
                raise
            except Exception as problem:
                if row is None:
                    raise
                failed.append(row["payment_id"])
                log.error("payment_not_expired", payment_id=row["payment_id"], exception=trace(problem))
        return _BATCH, True

    async def end(self, row: Row) -> None:
        reasons = await due_sql.read_unsent_reasons(self._db, [row])
        await self._transitions.apply(
            row, Expired(self.next_query_at(row, self._clock.now()), reasons.get(row["payment_id"]))
        )

    def next_query_at(self, row: Row, now: datetime) -> datetime | None:
        """Return the time of the next query about an expired payment; None after the last."""
        if row["checkout_request_id"] is None:
            return None
        asks = (row["created_at"] + timedelta(seconds=after) for after in self._settings.query_expired_after)
        return next((at for at in asks if at > now), None)
