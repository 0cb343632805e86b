"""Ambiguous status answers, for operators."""

from typing import Any

from piccolo.columns.combination import And

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.http.confirmation import require_reason
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_payments import status_query_sql
from mpesa_gateway_payments.tables import StatusCheckRow

MOST_SHOWN = 100


class StatusAnswerReview:
    """Lists ambiguous answers whose money no payment has, and records their review."""

    def __init__(self, *, db: Database, clock: Clock, audit: Audit) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit

    async def count(self, env: Env, merchant_id: str | None = None) -> int:
        """Return the number of undecided answers, at most 1,000; without ``merchant_id`` of all merchants."""
        return int(await self._db.fetchval(status_query_sql.COUNT_UNDECIDED, env, merchant_id))

    async def newest(self, env: Env, merchant_id: str | None = None) -> list[Row]:
        return await self._db.fetch(status_query_sql.FIND_UNDECIDED, env, merchant_id, MOST_SHOWN)

    async def resolve(self, env: Env, check_id: str, note: str, *, actor: str, merchant_id: str | None = None) -> None:
        """Record a review. Raises InvalidFields, NotFound, or Conflict if none is pending.

        With ``merchant_id``, another merchant's answer is not found.
        """
        require_reason(note, "what was done about it", field="note")
        reviewed: dict[Any, Any] = {
            StatusCheckRow.reviewed_at: self._clock.now(),
            StatusCheckRow.reviewed_by: actor,
            StatusCheckRow.review_note: note,
        }
        is_it: And = (StatusCheckRow.check_id == check_id) & (StatusCheckRow.env == env)
        if merchant_id is not None:
            is_it = is_it & (StatusCheckRow.merchant_id == merchant_id)
        async with self._db.transaction():
            rows: list[Found] = await self._db.run(
                StatusCheckRow.update(reviewed)
                .where(is_it, StatusCheckRow.finding == "ambiguous", StatusCheckRow.reviewed_at.is_null())
                .returning(*StatusCheckRow.all_columns())
            )
            if not rows:
                if not await self._db.run(StatusCheckRow.exists().where(is_it)):
                    raise NotFound("there is no such status answer")
                raise Conflict("this status answer does not need review")
            (row,) = rows
            await self._audit.record(
                "payment.status_answer_reviewed",
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=check_id,
                env=env,
                detail={
                    "receipt": row["answered_receipt"] or row["receipt"],
                    "payment_id": row["payment_id"],
                    "note": note,
                },
            )
