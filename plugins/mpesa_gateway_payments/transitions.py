"""Writes payments: every status change, with its event in the same transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.deferred import ConcurrentUpdate, DeferredWrite
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound
from mpesa_gateway.money import Kes
from mpesa_gateway_payments import tables, transition_sql
from mpesa_gateway_payments.changes import PaymentChange, Step
from mpesa_gateway_payments.decisions import (
    Complete,
    Decision,
    Ignore,
    LearnHandle,
    LearnReceipt,
    MatchedMoney,
    Report,
    as_mismatch,
    decide,
)
from mpesa_gateway_payments.errors import NotRefundable
from mpesa_gateway_payments.events import PaymentReversed
from mpesa_gateway_payments.metrics import PaymentMetrics
from mpesa_gateway_payments.returned_money import is_money_returned
from mpesa_gateway_payments.states import Cause, Status
from mpesa_gateway_payments.tables import PaymentRow
from mpesa_gateway_payments.verdicts import Payment, Rules, payment_of
from mpesa_gateway_payments.views import event_fields
from mpesa_gateway_transactions.api import Allocations, ReportedTransaction, Subject, Transactions

log = structlog.get_logger(__name__)

_RECEIPT = "payment_receipt"
"""The unique constraint on a receipt in one env."""


@dataclass(frozen=True)
class Reversal:
    """A refund that M-Pesa carried out. ``amount`` is in KES; ``receipt`` is the reversal's own."""

    refund_id: str
    amount: Kes
    receipt: str | None


def _is_complete_without_receipt(decision: Decision) -> bool:
    return isinstance(decision, Complete) and decision.reported.receipt is None


def _may_clash(decision: Decision) -> bool:
    if isinstance(decision, Complete | LearnReceipt):
        return decision.reported.receipt is not None
    return isinstance(decision, LearnHandle)


class Transitions:
    """All status changes of payments. Each method needs an open transaction."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        outbox: Outbox,
        metrics: PaymentMetrics,
        rules: Rules,
        transactions: Transactions,
        allocations: Allocations,
    ) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox
        self._metrics = metrics
        self._rules = rules
        self._transactions = transactions
        self._allocations = allocations

    async def apply(self, row: Row, report: Report, *, is_noted: bool = False) -> tuple[Decision, ...]:
        """Decide a report about a locked payment, write the decisions and return them.

        ``is_noted``: the caller publishes the allocation of the money.

        Another payment's receipt, or money recorded with another amount, is a mismatch. Raises UniqueViolationError for
        another payment's CheckoutRequestID.
        """
        ((change, decisions),) = await self._decided([(row, partial(decide, report=report, rules=self._rules))])
        if isinstance(report, MatchedMoney) and report.cause is Cause.STATUS_QUERY and Ignore("known") in decisions:
            change.record_report(report.reported, report.cause, self._clock.now())
        if not any(map(_may_clash, decisions)):
            await self._write([change])
            return decisions
        for is_last in (False, True):
            told = await self._mark_announced(change)
            try:
                async with self._db.savepoint():
                    await self._write([change])
                    if not is_noted:
                        await self._allocations.publish_learnt(row["env"], change.left_to_tell(decisions, told))
            except asyncpg.UniqueViolationError as problem:
                if problem.constraint_name != _RECEIPT:
                    raise
                break
            except ConcurrentUpdate:
                # The locked payment is unchanged. Its transaction has another subject, amount or receiver, or was
                # announced since it was read.
                if is_last:
                    log.error("receipt_of_other_money", payment_id=row["payment_id"])
            else:
                return decisions
        decisions = as_mismatch(decisions, "receipt")
        ((change, _),) = await self._decided([(row, lambda _: decisions)])
        # A duplicate CheckoutRequestID must raise here, not at the end.
        async with self._db.savepoint():
            await self._write([change])
        return decisions

    async def apply_batch(self, reports: Sequence[tuple[Row, Report]]) -> list[tuple[Decision, ...]]:
        """Decide reports and defer the writes to the end of the transaction; return the decisions on each report.

        Reports about one payment are decided in order. The transaction raises ConcurrentUpdate if an unlocked payment
        or a receipt's owner has changed, or UniqueViolationError for a duplicate receipt: the caller then applies each
        report alone.
        """
        decided = await self._decided(
            [(row, partial(decide, report=report, rules=self._rules)) for row, report in reports]
        )
        await self._write(list({id(change): change for change, _ in decided}.values()))
        return [decisions for _, decisions in decided]

    async def _decided(
        self, asked: Sequence[tuple[Row, Callable[[Payment], tuple[Decision, ...]]]]
    ) -> list[tuple[PaymentChange, tuple[Decision, ...]]]:
        """Later decisions about a payment see its earlier ones.

        A success without receipt is a mismatch if its money may have been returned.
        """
        noted, now = await self._noted([row for row, _ in asked]), self._clock.now()
        changes: dict[str, PaymentChange] = {}
        decided: list[tuple[PaymentChange, tuple[Decision, ...]]] = []
        for row, decide_about in asked:
            payment_id = row["payment_id"]
            change = changes.setdefault(payment_id, PaymentChange(row, noted.get(payment_id, ())))
            decisions = decide_about(payment_of(change.row))
            if any(map(_is_complete_without_receipt, decisions)) and await is_money_returned(self._db, change.row):
                decisions = as_mismatch(decisions, "returned")
            for decision in decisions:
                change.apply(decision, now)
            decided.append((change, decisions))
        return decided

    async def _mark_announced(self, change: PaymentChange) -> Mapping[str, str]:
        """``apply_batch`` does not ask: it fails for announced money, and each report is applied alone."""
        receipts = sorted({one.receipt for one in change.seen if one.subject is not None})
        told: Mapping[str, str] = {}
        if receipts:
            told = await self._transactions.announced(change.row["env"], receipts)
        change.mark_announced(told)
        return told

    async def _noted(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        held = sorted({row["payment_id"] for row in rows if row["mismatch"] is not None})
        found = await self._db.fetch(transition_sql.MISMATCHES, held) if held else []
        return {row["payment_id"]: row["details"] for row in found}

    async def _write(self, changes: Sequence[PaymentChange]) -> None:
        """One statement for each table. The subscribers of ``publish`` run here, webhooks among them."""
        now = self._clock.now()
        changed = [change for change in changes if change.is_changed]
        if not changed:
            await self._transactions.defer([seen for change in changes for seen in change.seen])
            return
        rows = [change.row for change in changed]
        columns = ([row[name] for row in rows] for name in transition_sql.WRITTEN)
        await self._db.defer(DeferredWrite(transition_sql.UPDATE_PAYMENTS, tuple(columns), expects=len(rows)))
        await self._transactions.defer([seen for change in changes for seen in change.seen])
        # Subscribers may lock rows, which come before inserted ones.
        await self._outbox.publish([event for change in changed for event in change.events])
        await self._write_steps([step for change in changed for step in change.steps])

        async def written() -> None:
            for change in changed:
                row = change.row
                for reason in change.ended:
                    self._metrics.count_ended(row, reason, now)
                    event = "payment_completed" if reason is None else "payment_failed"
                    log.info(event, payment_id=row["payment_id"], code=row["result_code"], reason=reason)
                for event, fields in change.log_events:
                    log.error(event, payment_id=row["payment_id"], **fields)

        # After commit: the write may raise ConcurrentUpdate.
        await self._db.after_commit(written)

    async def reserve(
        self, merchant_id: str, env: Env, payment_id: str, amount: Kes | None, refund_id: str
    ) -> tuple[Found, Kes]:
        """Reserve an amount in KES, by default all that remains; return the payment and the amount.

        Locks the payment. Raises NotFound, or NotRefundable.
        """
        now = self._clock.now()
        row = await self._db.fetchrow(tables.LOCK, [payment_id])
        if row is None or (row["merchant_id"], row["env"]) != (merchant_id, env):
            raise NotFound("there is no such payment")
        left = row["amount"] - row["refunded"] - row["refund_reserved"]
        if row["reversed_outside"] is not None:
            raise NotRefundable(
                "M-Pesa reports that this payment was reversed outside this gateway: check the amount on its portal"
            )
        if row["status"] == Status.REVERSED.value:
            raise NotRefundable("this payment has been refunded in full")
        if row["status"] not in {Status.COMPLETED.value, Status.PARTIALLY_REVERSED.value}:
            raise NotRefundable(f"this payment is {row['status']}: only a paid payment can be refunded")
        if row["receipt"] is None:
            raise NotRefundable(
                "this payment has no receipt yet, and a refund needs it: "
                f"POST /v1/payments/mpesa/check-status/{payment_id}, or wait for the reconciliation"
            )
        wanted = left if amount is None else int(amount)
        if wanted > left or left == 0:
            raise NotRefundable(
                f"KES {left} of this payment can still be refunded: "
                f"KES {row['refunded']} are refunded, and KES {row['refund_reserved']} are reserved"
            )
        changes: dict[Any, Any] = {
            PaymentRow.refund_reserved: PaymentRow.refund_reserved + wanted,
            PaymentRow.updated_at: now,
        }
        (reserved,) = await self._db.run(
            PaymentRow.update(changes).where(PaymentRow.payment_id == payment_id).returning(*PaymentRow.all_columns())
        )
        await self.step(payment_id, now, "refund_asked", Cause.MERCHANT, None, f"{refund_id}: KES {wanted}")
        return reserved, Kes(wanted)

    async def release(self, payment_id: str, reversal: Reversal, text: str) -> None:
        now = self._clock.now()
        left = PaymentRow.refund_reserved - int(reversal.amount)
        changes: dict[Any, Any] = {PaymentRow.refund_reserved: left, PaymentRow.updated_at: now}
        await self._db.run(PaymentRow.update(changes).where(PaymentRow.payment_id == payment_id))
        await self.step(payment_id, now, "refund_failed", Cause.REVERSAL, None, f"{reversal.refund_id}: {text}")

    async def reverse(self, payment_id: str, reversal: Reversal, cause: Cause = Cause.REVERSAL) -> None:
        """Mark a reserved amount as refunded; the only way to ``reversed`` and ``partially_reversed``."""
        now = self._clock.now()
        row = await self._db.fetchrow(transition_sql.REVERSE, payment_id, int(reversal.amount), now)
        if row is None:
            raise RuntimeError(f"{reversal.refund_id} has no reserved amount on {payment_id}")
        if reversal.receipt is not None:
            await self._record_outgoing(row, reversal, reversal.receipt, now)
        detail = f"{reversal.refund_id}: KES {int(reversal.amount)}"
        await self._outbox.publish(
            [
                PaymentReversed(
                    **event_fields(row),
                    refund_id=reversal.refund_id,
                    refund_amount=reversal.amount.wire,
                    refunded_amount=Kes(row["refunded"]).wire,
                    reversal_receipt=reversal.receipt,
                )
            ]
        )
        await self.step(payment_id, now, row["status"], cause, None, detail)
        log.info("payment_reversed", payment_id=payment_id, refund_id=reversal.refund_id, status=row["status"])

    async def _record_outgoing(self, row: Row, reversal: Reversal, receipt: str, now: datetime) -> None:
        seen = ReportedTransaction(
            source="reversal",
            env=row["env"],
            number=row["shortcode"],
            merchant_id=row["merchant_id"],
            direction="out",
            receipt=receipt,
            occurred_at=now,
            amount_cents=int(reversal.amount) * 100,
            subject=Subject("refund", reversal.refund_id),
        )
        if await self._transactions.record([seen]) == [None]:
            # M-Pesa has carried out the refund.
            log.error("reversal_receipt_of_other_money", refund_id=reversal.refund_id, receipt=receipt)

    async def step(self, payment_id: str, at: datetime, kind: str, cause: Cause, code: str | None, detail: str) -> None:
        """Add a step that the payment's columns do not state."""
        await self._write_steps([(payment_id, at, kind, cause.value, code, detail)])

    async def _write_steps(self, steps: Sequence[Step]) -> None:
        if steps:
            columns = tuple(list(column) for column in zip(*steps, strict=True))
            await self._db.defer(DeferredWrite(transition_sql.STEPS, columns))
