"""Closes payments whose push was never acknowledged."""

from datetime import datetime, timedelta

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import OVERLOADED, Database, Row
from mpesa_gateway_payments import due_sql, tables
from mpesa_gateway_payments.decisions import Expired, ReportedFailure, unsent_text
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Cause, Charge, Status
from mpesa_gateway_payments.transitions import Transitions

log = structlog.get_logger(__name__)

_AT_MOST = 500
"""Payments closed by one run."""

CUT_OFF = "the request was cut off before M-Pesa was called"
"""Reason if no attempt left one."""


class UnacknowledgedPushes:
    """Closes payments without a CheckoutRequestID.

    Only ``ready`` and ``released`` prove that nothing was sent. A push marked ``sending`` whose process died may have
    reached the payer: its outcome is unknown, and a callback, Pull or a status query may still complete it.
    """

    def __init__(self, *, db: Database, clock: Clock, settings: PaymentsSettings, transitions: Transitions) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._transitions = transitions

    async def close_due(self) -> int:
        """Close payments without an outcome after their key's lease; return their number.

        Makes no requests. Locked payments are left to the next run.
        """
        now = self._clock.now()
        # Lease and expiry are counted from the same time.
        begun_before = now + timedelta(seconds=self._settings.expire_after - self._settings.create_lease)
        closed = 0
        for payment_id in await due_sql.find_abandoned(self._db, begun_before, now, _AT_MOST):
            try:
                async with self._db.transaction():
                    await self._db.execute("SET LOCAL lock_timeout = 500")
                    await self.close(payment_id, now)
                closed += 1
            except OVERLOADED as problem:
                log.info("payment_not_closed", payment_id=payment_id, error=type(problem).__name__)
        return closed

    async def close(self, payment_id: str, now: datetime) -> Row | None:
        """Close one payment in a transaction, or reschedule it; return its new row. Locks the key, then the payment."""
        async with self._db.transaction():
            found = await self._db.fetchrow(tables.READ, [payment_id])
            if found is None:
                return None
            merchant_id, env, key = found["merchant_id"], found["env"], found["idempotency_key"]
            leased_until = await idempotency.lock(self._db, merchant_id=merchant_id, env=env, key=key)
            # The payment may have been resent, or acknowledged by a callback.
            row = await self._db.fetchrow(tables.LOCK, [payment_id])
            if row is None or row["status"] != Status.PENDING.value or row["checkout_request_id"] is not None:
                return row
            if leased_until is not None and leased_until > now:
                await due_sql.set_next_query(self._db, payment_id, leased_until)
            elif row["charge"] == Charge.RELEASED.value and now < row["expires_at"]:
                await due_sql.set_next_query(self._db, payment_id, row["expires_at"])
            elif row["charge"] in {Charge.READY.value, Charge.RELEASED.value}:
                await idempotency.close(self._db, merchant_id=merchant_id, env=env, key=key)
                reasons = await due_sql.read_unsent_reasons(self._db, [row])
                report = ReportedFailure(
                    code="unsent",
                    text=unsent_text(reasons.get(payment_id, CUT_OFF)),
                    reason="not_sent",
                    cause=Cause.EXPIRY,
                    step="expired",
                    is_final=True,
                )
                await self._transitions.apply(row, report)
            else:
                await self._close_unknown(row, now)
            return await self._db.fetchrow(tables.READ, [payment_id])

    async def _close_unknown(self, row: Row, now: datetime) -> None:
        payment_id = row["payment_id"]
        if row["charge"] == Charge.SENDING.value:
            await idempotency.settle(
                self._db, merchant_id=row["merchant_id"], env=row["env"], key=row["idempotency_key"]
            )
            await self._db.fetchrow(tables.OUTCOME_UNKNOWN, payment_id, now)
            await self._transitions.step(
                payment_id,
                now,
                "unknown",
                Cause.EXPIRY,
                None,
                "the process that sent the push ended without storing its outcome",
            )
        if now >= row["expires_at"]:
            # Read again after the write.
            locked = await self._db.fetchrow(tables.LOCK, [payment_id])
            if locked is not None:
                await self._transitions.apply(locked, Expired())
        elif row["claim"] is None:
            await due_sql.set_next_query(self._db, payment_id, row["expires_at"])
