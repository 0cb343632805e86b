"""Reports that contradict a recorded transaction, for operators."""

from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.http.confirmation import require_reason
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_transactions.tables import WitnessRow

MOST_SHOWN = 100

# raw SQL: join
_OPEN = "transaction.env = $1 AND detail IS NOT NULL AND reviewed_at IS NULL"

_UNREVIEWED = f"FROM transaction_witness AS witness JOIN transaction USING (transaction_id) WHERE {_OPEN}"

COUNT = f"SELECT count(*) FROM (SELECT 1 {_UNREVIEWED} LIMIT 1000) AS contradicting"  # noqa: S608 - the clause above

COUNT_OF = f"""
SELECT count(*) FROM (SELECT 1 {_UNREVIEWED} AND transaction.merchant_id = $2 LIMIT 1000) AS contradicting
"""  # noqa: S608 - the same reason

_NEWEST = f"""
SELECT transaction_id, witness.source, witness.seen_at, detail, transaction.merchant_id, direction, receipt,
    amount_cents, first_source, subject_kind, subject_id, number
FROM transaction_witness AS witness JOIN transaction USING (transaction_id) JOIN receiver USING (receiver_id)
WHERE {_OPEN} AND ($3::uuid IS NULL OR transaction.merchant_id = $3)
ORDER BY transaction_id DESC, witness.source LIMIT $2
"""  # noqa: S608 - the same reason

# raw SQL: lock - later reports lock the transaction before its witness.
LOCK = """
SELECT env, transaction.merchant_id, detail FROM transaction JOIN transaction_witness USING (transaction_id)
WHERE transaction_id = $1 AND source = $2 FOR UPDATE OF transaction
"""


class ContradictionReview:
    """Lists unreviewed contradictions and records their review."""

    def __init__(self, *, db: Database, clock: Clock, audit: Audit) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit

    async def count(self, env: Env, merchant_id: str | None = None) -> int:
        """Return the number of unreviewed contradictions, at most 1,000."""
        if merchant_id is None:
            return int(await self._db.fetchval(COUNT, env))
        return int(await self._db.fetchval(COUNT_OF, env, merchant_id))

    async def newest(self, env: Env, merchant_id: str | None = None) -> list[Row]:
        return await self._db.fetch(_NEWEST, env, MOST_SHOWN, merchant_id)

    async def resolve(
        self, env: Env, transaction_id: str, source: str, note: str, *, actor: str, merchant_id: str | None = None
    ) -> None:
        """Record a review. Raises InvalidFields, NotFound, or Conflict if none is pending.

        With ``merchant_id``, another merchant's report is not found.
        """
        require_reason(note, "what was done about it", field="note")
        reviewed: dict[Any, Any] = {
            WitnessRow.reviewed_at: self._clock.now(),
            WitnessRow.reviewed_by: actor,
            WitnessRow.review_note: note,
        }
        async with self._db.transaction():
            found = await self._db.fetchrow(LOCK, transaction_id, source)
            if found is None or found["env"] != env or merchant_id not in {None, found["merchant_id"]}:
                raise NotFound("there is no such report")
            rows = await self._db.run(
                WitnessRow.update(reviewed)
                .where(
                    WitnessRow.transaction_id == transaction_id,
                    WitnessRow.source == source,
                    WitnessRow.detail.is_not_null(),
                    WitnessRow.reviewed_at.is_null(),
                )
                .returning(WitnessRow.source)
            )
            if not rows:
                raise Conflict("this report does not need review")
            await self._audit.record(
                "transaction.contradiction_reviewed",
                merchant_id=found["merchant_id"],
                actor=actor,
                subject_id=transaction_id,
                env=env,
                detail={"source": source, "difference": found["detail"], "note": note},
            )
