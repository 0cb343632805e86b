"""Reversals that M-Pesa reports and this gateway did not request."""

from datetime import timedelta
from typing import Literal

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.money import Kes
from mpesa_gateway_payments import statement_matching_sql, tables
from mpesa_gateway_payments.api import Lock, lock_nothing
from mpesa_gateway_payments.events import PaymentReversed
from mpesa_gateway_payments.evidence import Receiver
from mpesa_gateway_payments.result_codes import TransactionState
from mpesa_gateway_payments.states import Cause
from mpesa_gateway_payments.tables import OutgoingReceiptRow
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.views import event_fields
from mpesa_gateway_transactions.api import ReportedReversal, ReversibleTransactions

log = structlog.get_logger(__name__)

_LOOK_BACK = timedelta(days=7)
"""Age of a recorded receipt after which no callback for it comes."""


class ExternalReversals:
    """Marks payments as reversed without a refund of ours."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        outbox: Outbox,
        transitions: Transitions,
        loose: ReversibleTransactions,
    ) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox
        self._transitions = transitions
        self._loose = loose

    async def apply(
        self, row: Row, state: TransactionState, cause: Cause, text: str, reversal_receipt: str | None = None
    ) -> bool:
        """Record that M-Pesa reversed a payment; return False if nothing changes.

        Needs an open transaction in which ``row`` is locked. A payment with a refund, finished or pending, is
        unchanged: M-Pesa does not state whether it means that refund. M-Pesa states no amount of a partial
        reversal: the payment stays completed, rejects refunds and needs review.
        """
        of: Literal["whole", "part"] = "part" if state == "partially_reversed" else "whole"
        now = self._clock.now()
        reversed_ = await self._db.fetchrow(statement_matching_sql.REVERSED_OUTSIDE, row["payment_id"], of, now)
        if reversed_ is None:
            return False
        kind = "reversed" if of == "whole" else "reversal_seen"
        detail = text if reversal_receipt is None else f"{text}, by {reversal_receipt}"
        amount = Kes(reversed_["amount"]).wire if of == "whole" else None
        await self._outbox.publish(
            [
                PaymentReversed(
                    **event_fields(reversed_),
                    refund_id=None,
                    refund_amount=amount,
                    refunded_amount=Kes(reversed_["refunded"]).wire,
                    reversal_receipt=reversal_receipt,
                    origin="mpesa",
                )
            ]
        )
        await self._transitions.step(row["payment_id"], now, kind, cause, None, detail)
        log.error("payment_reversed_externally", payment_id=row["payment_id"], of=of)
        return True

    async def record(self, receiver: Receiver, receipt: str, state: TransactionState) -> None:
        """Record a reversed receipt without a payment at the receiver, in the open transaction.

        Unless a part of the money stayed, no later report of it completes a payment of the receiver by the rule. If one
        gets it all the same, ``apply_recorded`` reverses that payment.
        """
        now = self._clock.now()
        await self._db.execute(
            statement_matching_sql.RECORD_REVERSED_RECEIPT,
            receiver.env,
            receiver.number,
            receipt,
            now,
            state == "partially_reversed",
        )

        async def apply_later() -> None:
            await self.apply_recorded()

        await self._db.after_commit(apply_later)

    async def reverse_loose(self, seen: ReportedReversal, lock: Lock = lock_nothing) -> None:
        """Mark money without a payment as reversed, in the open transaction.

        Unallocated money that may be a payment's waits until its payment is known, or no longer possible.
        """
        if await self._loose.reverse(seen, lock) == "claimed":
            known = await self._db.fetch(statement_matching_sql.MONEY_IN, seen.env, list(seen.receipts), seen.number)
            for row in known:
                is_whole = seen.is_whole or row["amount_cents"] == seen.amount_cents
                state: TransactionState = "reversed" if is_whole else "partially_reversed"
                await self.record(Receiver(seen.env, seen.number), row["receipt"], state)

    async def apply_recorded(self) -> int:
        """Reverse the payments and the other money that got a recorded receipt; return their number.

        It runs after commit and finds both rows, in any order of commits.
        """
        return await self._apply_to_payments() + await self._apply_to_loose()

    async def _apply_to_loose(self) -> int:
        rows = await self._db.fetch(statement_matching_sql.LOOSE_REVERSED_RECEIPTS, self._clock.now() - _LOOK_BACK)
        count = 0
        for row in rows:
            seen = ReportedReversal(
                env=row["env"], number=row["number"], receipts=(row["receipt"],), is_whole=not row["is_part"]
            )
            async with self._db.transaction():
                outcome = await self._loose.reverse(seen)
                if outcome in {"applied", "known"}:
                    await self._db.run(
                        OutgoingReceiptRow.delete().where(
                            OutgoingReceiptRow.env == row["env"],
                            OutgoingReceiptRow.number == row["number"],
                            OutgoingReceiptRow.receipt == row["receipt"],
                            OutgoingReceiptRow.is_part == row["is_part"],
                        )
                    )
                count += outcome == "applied"
        return count

    async def _apply_to_payments(self) -> int:
        rows = await self._db.fetch(statement_matching_sql.PAID_BY_REVERSED_RECEIPT, self._clock.now() - _LOOK_BACK)
        count = 0
        for row in rows:
            async with self._db.transaction():
                payment = await self._db.fetchrow(tables.LOCK, [row["payment_id"]])
                if payment is None or payment["receipt"] is None:
                    continue
                # Of two concurrent calls, one deletes the row.
                notes = await self._db.run(
                    OutgoingReceiptRow.delete()
                    .where(
                        OutgoingReceiptRow.env == payment["env"],
                        OutgoingReceiptRow.number == payment["shortcode"],
                        OutgoingReceiptRow.receipt == payment["receipt"],
                    )
                    .returning(OutgoingReceiptRow.is_part)
                )
                for note in notes:
                    state: TransactionState = "partially_reversed" if note["is_part"] else "reversed"
                    count += await self.apply(
                        payment, state, Cause.STATUS_QUERY, "M-Pesa had reported the receipt as reversed"
                    )
        return count
