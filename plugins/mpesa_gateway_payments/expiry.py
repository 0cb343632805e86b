"""Ends payments whose time is up. It asks nothing and waits for nothing: M-Pesa may be away."""

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
"""Payments that are ended in one transaction, by the same number of statements however many they are."""

_AT_MOST = 50
"""Batches of one run; the next run goes on."""


class Expiry:
    """The end of a payment's time: expired, never sent, or a reported success that M-Pesa did not confirm."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: PaymentsSettings,
        moves: Transitions,
        unacknowledged: UnacknowledgedPushes,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._moves = moves
        self._unacknowledged = unacknowledged

    async def end_due(self) -> int:
        """End every payment that is past ``expires_at`` or was never acknowledged; return how many ended.

        Asks nothing, and does not depend on Daraja.
        Skips rows that are locked: the next run finds them. A payment that cannot be ended delays no other.
        """
        ended = await self._unacknowledged.close_due()
        failed: list[str] = []
        for _ in range(_AT_MOST):
            try:
                count, has_more = await self._end_batch(failed)
            except UNREACHABLE:
                raise
            except Exception as problem:  # noqa: BLE001 - one of them is to blame: each by itself then
                log.error("payments_expired_singly", exception=trace(problem))
                count, has_more = await self._end_each(failed)
            ended += count
            if not has_more:
                break
        return ended

    async def _end_batch(self, except_for: list[str]) -> tuple[int, bool]:
        """End a batch in one transaction; returns their number, and whether there may be more."""
        async with self._db.transaction():
            now = self._clock.now()
            rows = await self._db.fetch(due_sql.LOCK_EXPIRED, now, _BATCH, except_for)
            reasons = await due_sql.read_unsent_reasons(self._db, rows)
            await self._moves.apply_batch(
                [(row, Expired(self.next_ask(row, now), reasons.get(row["payment_id"]))) for row in rows]
            )
        return len(rows), len(rows) == _BATCH

    async def _end_each(self, failed: list[str]) -> tuple[int, bool]:
        """End a batch one by one; adds those that cannot be ended to ``failed``."""
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
        """End a locked, pending payment whose time is up, in the open transaction."""
        reasons = await due_sql.read_unsent_reasons(self._db, [row])
        await self._moves.apply(row, Expired(self.next_ask(row, self._clock.now()), reasons.get(row["payment_id"])))

    def next_ask(self, row: Row, now: datetime) -> datetime | None:
        """When M-Pesa is asked again about an expired payment, counted from its creation; None after the last time."""
        if row["checkout_request_id"] is None:
            return None
        asks = (row["created_at"] + timedelta(seconds=after) for after in self._settings.query_expired_after)
        return next((at for at in asks if at > now), None)
