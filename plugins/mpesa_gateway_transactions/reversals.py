"""Reversals of money without a payment that M-Pesa reports and this gateway did not request."""

from dataclasses import dataclass
from typing import Any, Literal

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.allocating import AllocationRules, incoming_money
from mpesa_gateway_transactions.announcing import event_fields, report_of
from mpesa_gateway_transactions.api import LockLater, ReportedReversal, ReversalOutcome, lock_nothing_more
from mpesa_gateway_transactions.events import TransactionReversed
from mpesa_gateway_transactions.tables import TransactionRow
from mpesa_gateway_transactions.views import Values, cents, subject_of

log = structlog.get_logger(__name__)

# raw SQL: array
_FIND = """
SELECT transaction_id FROM transaction JOIN receiver USING (receiver_id, env)
WHERE env = $1 AND direction = 'in' AND receipt = ANY($2::text[]) AND number = $3
    AND subject_kind IS DISTINCT FROM 'payment'
ORDER BY transaction_id LIMIT 1
"""

# raw SQL: lock - the money in is locked before the money out, as for a refund.
_LOCK_OUT = """
SELECT transaction_id, subject_id FROM transaction JOIN receiver USING (receiver_id, env)
WHERE env = $1 AND direction = 'out' AND receipt = $2 AND number = $3 FOR UPDATE OF transaction
"""

# raw SQL: upsert - another reversal of the money needs a review of its own.
_WITNESS = """
INSERT INTO transaction_witness (transaction_id, source, seen_at, detail) VALUES ($1, 'reversal', $2, $3)
ON CONFLICT (transaction_id, source) DO UPDATE SET detail = excluded.detail, seen_at = excluded.seen_at,
    reviewed_at = NULL, reviewed_by = NULL, review_note = NULL
    WHERE excluded.detail IS DISTINCT FROM transaction_witness.detail
"""


@dataclass(frozen=True)
class Change:
    """The state of money after a report. ``returned_cents`` were returned by this report, None if unknown."""

    of: Literal["whole", "part"]
    returned_cents: int | None


def decide(row: Values, seen: ReportedReversal) -> Change | None:
    """Return the change, or None if the report adds nothing.

    Money with a refund, finished or pending, is unchanged: M-Pesa does not state whether it means that refund.
    """
    known, amount, gone = row["reversed_outside"], row["amount_cents"], row["refunded_cents"]
    if known == "whole" or row["refund_reserved_cents"] or (known is None and gone):
        return None
    left = None if amount is None else amount - gone
    if seen.is_whole or (seen.amount_cents is not None and seen.amount_cents == left):
        return Change("whole", left)
    if seen.amount_cents is None:
        return None if known == "part" else Change("part", None)
    # A reversal of more than is left contradicts the money: a person compares them.
    fits = left is not None and 0 < seen.amount_cents < left
    return Change("part", seen.amount_cents if fits else None)


class TransactionReversals:
    """Implements ``ReversibleTransactions``."""

    def __init__(self, *, db: Database, clock: Clock, outbox: Outbox, rules: AllocationRules) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox
        self._rules = rules

    async def reverse(self, seen: ReportedReversal, lock: LockLater = lock_nothing_more) -> ReversalOutcome:
        transaction_id = await self._db.fetchval(_FIND, seen.env, list(seen.receipts), seen.number)
        row = None if transaction_id is None else await self._db.fetchrow(allocation_sql.LOCK, transaction_id)
        if row is None or row["subject_kind"] == "payment":
            return "unknown"
        if row["reversed_outside"] is None and await self._is_claimed(row):
            return "claimed"
        await lock()
        returned = await self._unlinked_money_out(seen)
        if seen.reversal_receipt is not None and returned is None:
            # Our own refund, or a reversal that was applied before.
            return "known"
        change = decide(row, seen)
        if change is not None:
            await self._apply(row, change, seen)
        if returned is not None and (change is not None or await self._is_first_line(row)):
            await self._link(returned, row["transaction_id"])
        return "known" if change is None else "applied"

    async def _is_claimed(self, row: Row) -> bool:
        """Return True for unallocated money that may be a payment's: its reversal is the payment's."""
        if row["subject_id"] is not None:
            return False
        known = {**dict(row), "kind": row["receiver_kind"], "money_kind": row["kind"]}
        return await self._rules.claim(incoming_money(report_of(row), known)) is not None

    async def _unlinked_money_out(self, seen: ReportedReversal) -> str | None:
        if seen.reversal_receipt is None:
            return None
        row = await self._db.fetchrow(_LOCK_OUT, seen.env, seen.reversal_receipt, seen.number)
        return row["transaction_id"] if row is not None and row["subject_id"] is None else None

    async def _is_first_line(self, row: Row) -> bool:
        """True if a status answer reported the reversal before, without its own receipt."""
        if row["reversed_outside"] is None:
            return False
        return not await self._db.run(
            TransactionRow.exists().where(
                TransactionRow.subject_kind == "transaction", TransactionRow.subject_id == row["transaction_id"]
            )
        )

    async def _link(self, returned: str, transaction_id: str) -> None:
        values: dict[Any, Any] = {TransactionRow.subject_kind: "transaction", TransactionRow.subject_id: transaction_id}
        linked = await self._db.run(
            TransactionRow.update(values)
            .where(TransactionRow.transaction_id == returned, TransactionRow.subject_id.is_null())
            .returning(TransactionRow.transaction_id)
        )
        if not linked:
            raise ConcurrentUpdate("the money out has another subject")

    async def _apply(self, row: Row, change: Change, seen: ReportedReversal) -> None:
        transaction_id, returned = row["transaction_id"], change.returned_cents
        refunded = row["refunded_cents"] + (returned or 0)
        values: dict[Any, Any] = {
            TransactionRow.reversed_outside: change.of,
            TransactionRow.refunded_cents: refunded,
            # ``transaction.reversed`` announces the money.
            TransactionRow.announce_at: None,
        }
        await self._db.run(TransactionRow.update(values).where(TransactionRow.transaction_id == transaction_id))
        await self._db.execute(_WITNESS, transaction_id, self._clock.now(), _detail(change, refunded, seen))
        subject = subject_of(row)
        await self._outbox.publish(
            [
                TransactionReversed(
                    **event_fields(row),
                    allocated_to=None if subject is None else {"type": subject.type, "id": subject.id},
                    reversed=change.of,
                    refund_amount=cents(returned),
                    refunded_amount=f"{refunded // 100}.{refunded % 100:02}",
                    reversal_receipt=seen.reversal_receipt,
                )
            ]
        )
        log.error("transaction_reversed_externally", transaction_id=transaction_id, of=change.of)


def _detail(change: Change, refunded: int, seen: ReportedReversal) -> str:
    by = "" if seen.reversal_receipt is None else f", by {seen.reversal_receipt}"
    what = "in full" if change.of == "whole" else "in part"
    known = "" if change.of == "whole" else f", {refunded} cents known so far"
    return f"reports the money as reversed {what} outside this gateway{by}{known}"
