"""Moves payments: the one place where a status changes, each time with its event in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.db.writes import Write
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound
from mpesa_gateway.meter import Meter
from mpesa_gateway.money import Kes
from mpesa_gateway.stored import dumps, loads
from mpesa_gateway_payments import tables, transition_sql
from mpesa_gateway_payments.errors import NotRefundable
from mpesa_gateway_payments.events import PaymentCompleted, PaymentFailed, PaymentMismatched, PaymentReversed
from mpesa_gateway_payments.evidence import Evidence, Proof
from mpesa_gateway_payments.measures import count_ended
from mpesa_gateway_payments.states import Cause, Status, sources
from mpesa_gateway_payments.verdicts import AlreadyKnown, Mismatch, Settles, Verdict
from mpesa_gateway_payments.views import event_fields

log = structlog.get_logger(__name__)

EXPIRED = "M-Pesa reported no result in time; a late proof of money still completes this payment"
UNSENT = "never sent: M-Pesa could not be reached, and the request was not repeated"
"""What is written of payments that ended by their time."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What M-Pesa told of money that moved.

    ``amount`` is in KES, None when absent or not whole (then ``amount_text`` says what stood there); ``phone`` is what
    is visible of the payer's number.
    """

    receipt: str | None = None
    amount: Kes | None = None
    amount_text: str | None = None
    phone: str | None = None
    code: str = "0"
    text: str = ""
    is_proven: bool = True
    """False while nothing proves who posted it: then M-Pesa's own answer counts, and nothing else of it."""

    @property
    def amount_shown(self) -> str | None:
        """The amount as the API shows it, or what stood there where it is none."""
        return self.amount_text if self.amount is None else Kes(self.amount).wire


def told_of(evidence: Evidence, *, code: str = "0", text: str = "") -> Told:
    """What is written of a report."""
    amount = evidence.amount
    return Told(
        receipt=evidence.receipt,
        amount=amount if isinstance(amount, Kes) else None,
        amount_text=None if amount is None else str(amount),
        phone=evidence.payer,
        code=code,
        text=text,
        is_proven=evidence.proof is not Proof.NONE,
    )


@dataclass(frozen=True)
class Reversal:
    """A refund that M-Pesa carried out. ``amount`` is in KES, ``receipt`` the reversal's own."""

    refund_id: str
    amount: Kes
    receipt: str | None


class Transitions:
    """Every way a payment can go. Each needs an open transaction, and does nothing where somebody was there before."""

    def __init__(self, *, db: Database, clock: Clock, outbox: Outbox, meter: Meter) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox
        self._meter = meter

    async def take(self, row: Row, verdict: Verdict, told: Told, cause: Cause) -> str:
        """Write what the judge decided about a payment that the caller has locked.

        Returns ``completed``, ``known`` or ``mismatched``; ``ignored`` for a verdict that concerns no payment.
        """
        outcome = await self._take(row, verdict, told, cause)
        claim = None if row["claim"] is None else loads(row["claim"], Told)
        if outcome == "ignored" or claim is None or not claim.is_proven:
            return outcome
        if claim.receipt not in {None, told.receipt}:
            # Other money was quicker than the answer about this: the payer may have paid twice.
            await self.hold(row, "unconfirmed", claim, Cause.CALLBACK)
        return outcome

    async def _take(self, row: Row, verdict: Verdict, told: Told, cause: Cause) -> str:
        if isinstance(verdict, AlreadyKnown):
            return "known"
        if isinstance(verdict, Mismatch):
            if verdict.is_new:
                await self.hold(row, verdict.of, told, cause)
            else:
                log.warning("payment_still_held", payment_id=row["payment_id"], of=row["mismatch"], cause=cause.value)
            return "mismatched"
        if not isinstance(verdict, Settles):
            return "ignored"
        try:
            async with self._db.savepoint():
                is_new = await self.complete(
                    row["payment_id"], told, cause, other_phone=told.phone if verdict.is_other_payer else None
                )
        except asyncpg.UniqueViolationError:
            # This receipt completed another payment: the same money cannot pay twice.
            await self.hold(row, "receipt", told, cause)
            return "mismatched"
        return "completed" if is_new else "known"

    async def complete(self, payment_id: str, told: Told, cause: Cause, *, other_phone: str | None = None) -> bool:
        """The one way to ``completed``. False when the payment had got there, or may not."""
        now = self._clock.now()
        row = await self._db.fetchrow(
            transition_sql.COMPLETE,
            payment_id,
            told.receipt,
            told.code,
            told.text,
            "phone" if other_phone else None,
            other_phone,
            now,
            sources(Status.COMPLETED, has_receipt=told.receipt is not None, is_final=False),
            cause.value,
        )
        if row is None:
            await self._learn_receipt(payment_id, told, cause, now, other_phone)
            return False
        await self._outbox.publish([PaymentCompleted(**event_fields(row))])
        await self._count(row, None, now)
        if other_phone:
            await self._publish_mismatch(row, "phone", Kes(row["amount"]).wire, told.receipt)
        log.info("payment_completed", payment_id=payment_id, cause=cause.value)
        return True

    async def _learn_receipt(
        self, payment_id: str, told: Told, cause: Cause, now: datetime, other_phone: str | None
    ) -> None:
        """A completed payment whose receipt nobody had told gets it."""
        if told.receipt is None:
            return
        mismatch = "phone" if other_phone else None
        row = await self._db.fetchrow(
            transition_sql.LEARN_RECEIPT, payment_id, told.receipt, now, mismatch, other_phone
        )
        if row is not None:
            await self.step(payment_id, now, "receipt_learnt", cause, told.code, told.receipt)
            if other_phone:
                await self._publish_mismatch(row, "phone", Kes(row["amount"]).wire, told.receipt)

    async def fail(
        self,
        payment_id: str,
        *,
        code: str,
        text: str,
        reason: str,
        cause: Cause,
        step: str = "failed",
        is_final: bool = False,
        due_at: datetime | None = None,
    ) -> bool:
        """The one way to ``failed``. False when the payment had ended before, or holds money to look at.

        ``is_final``: it is M-Pesa's last word. ``due_at``: when M-Pesa is asked all the same.
        """
        now = self._clock.now()
        row = await self._db.fetchrow(
            transition_sql.FAIL,
            payment_id,
            code,
            text,
            reason,
            now,
            step == "refused",
            sources(Status.FAILED, has_receipt=False),
            is_final,
            due_at,
        )
        if row is None:
            return False
        await self.step(payment_id, now, step, cause, code, text)
        await self._outbox.publish([PaymentFailed(**event_fields(row))])
        await self._count(row, reason, now)
        log.info("payment_failed", payment_id=payment_id, cause=cause.value, reason=reason)
        return True

    async def _count(self, row: Row, reason: str | None, at: datetime) -> None:
        """Once it is committed, the payment has ended."""

        async def count() -> None:
            count_ended(self._meter, row, reason, at)

        await self._db.after_commit(count)

    async def expire_due(self, limit: int, ask_after: Sequence[int], *, except_for: Sequence[str]) -> int:
        """End up to ``limit`` payments whose time is up, without those that hold a claim; returns their number.

        A constant number of statements, however many they are. ``ask_after``: when M-Pesa is asked again about one that
        it acknowledged, in seconds from its creation. Rows that are locked are left for later.
        """
        now = self._clock.now()
        rows = await self._db.fetch(
            transition_sql.END_EXPIRED,
            now,
            limit,
            list(except_for),
            [float(one) for one in ask_after],
            UNSENT,
            EXPIRED,
        )
        await self._outbox.publish([PaymentFailed(**event_fields(row)) for row in rows])

        async def ended() -> None:
            for row in rows:
                count_ended(self._meter, row, row["failure_reason"], now)
                log.info(
                    "payment_failed",
                    payment_id=row["payment_id"],
                    cause=Cause.EXPIRY.value,
                    reason=row["failure_reason"],
                )

        await self._db.after_commit(ended)
        return len(rows)

    async def expire(self, payment_id: str, due_at: datetime | None = None) -> None:
        """M-Pesa reported no result in time. The merchant is told; M-Pesa is asked again at ``due_at``."""
        await self.fail(
            payment_id,
            code="expired",
            text=EXPIRED,
            reason="expired",
            cause=Cause.EXPIRY,
            step="expired",
            due_at=due_at,
        )

    async def hold(self, row: Row, of: str, told: Told, cause: Cause) -> None:
        """Money was reported that is not what we asked for: keep what was said, tell, and leave it to a person.

        The payment shows the first such report; each further one stands in the timeline, and is told too, once.
        """
        now = self._clock.now()
        held = await self._db.fetchrow(
            transition_sql.HOLD,
            row["payment_id"],
            of,
            told.amount_shown,
            told.receipt,
            told.phone,
            told.code,
            told.text,
            now,
        )
        said = f"KES {told.amount_text}" if told.amount_text is not None else "no amount"
        by = f"receipt {told.receipt}" if told.receipt is not None else "no receipt"
        detail = f"{of}: expected KES {row['amount']}, M-Pesa reports {said}, {by}"
        if held is None and await self._db.fetchval(transition_sql.HAS_MISMATCH, row["payment_id"], detail):
            return
        if held is None:
            # The row keeps the first thing that did not fit; another one is told all the same, to people as well.
            await self._db.execute(transition_sql.HOLD_AGAIN, row["payment_id"], of, now)
        await self.step(row["payment_id"], now, "mismatched", cause, told.code, detail)
        await self._publish_mismatch(held or row, of, told.amount_shown, told.receipt)
        log.error("payment_mismatched", payment_id=row["payment_id"], of=of)

    async def claim(self, row: Row, told: Told, patience: timedelta) -> bool:
        """Remember what a callback says until a query has confirmed it; the query is due at once.

        False while what another callback says waits for that.
        """
        now = self._clock.now()
        kept = await self._db.fetchrow(transition_sql.CLAIM, row["payment_id"], dumps(told), now, now + patience)
        if kept is None:
            return False
        await self.step(row["payment_id"], now, "confirming", Cause.CALLBACK, told.code, told.text)
        return True

    async def drop_claim(self, payment_id: str, *, refuted: bool, text: str = "") -> None:
        """Forget what was to be confirmed: it has been, or M-Pesa says otherwise."""
        now = self._clock.now()
        await self._db.execute(transition_sql.DROP_CLAIM, payment_id, now)
        if refuted:
            await self.step(payment_id, now, "unconfirmed", Cause.STK_QUERY, None, text)
            log.error("callback_refuted", payment_id=payment_id)

    # -- money that goes back -------------------------------------------------------------------------------------

    async def reserve(
        self, merchant_id: str, env: Env, payment_id: str, amount: Kes | None, refund_id: str
    ) -> tuple[Row, Kes]:
        """Set an amount (all that is left without one) aside for a refund; gives the payment, and what was set aside.

        Raises NotFound, and NotRefundable where the payment is not paid, has no receipt, or has less left.
        """
        now = self._clock.now()
        row = await self._db.fetchrow(tables.LOCK, payment_id)
        if row is None or (row["merchant_id"], row["env"]) != (merchant_id, env):
            raise NotFound("there is no such payment")
        left = row["amount"] - row["refunded"] - row["refund_reserved"]
        if row["reversed_outside"] is not None:
            raise NotRefundable(
                "M-Pesa reports that this payment was reversed outside this gateway: look on its portal what went back"
            )
        if row["status"] == Status.REVERSED.value:
            raise NotRefundable("this payment has been refunded in full")
        if row["status"] not in {Status.COMPLETED.value, Status.PARTIALLY_REVERSED.value}:
            raise NotRefundable(f"this payment is {row['status']}: only money that has come in can be refunded")
        if row["receipt"] is None:
            raise NotRefundable(
                "M-Pesa has not told this payment's receipt yet, and a refund needs it: "
                f"POST /v1/payments/mpesa/check-status/{payment_id}, or wait for the reconciliation"
            )
        wanted = left if amount is None else int(amount)
        if wanted > left or left == 0:
            raise NotRefundable(
                f"KES {left} of this payment can still be refunded: "
                f"KES {row['refunded']} have been, and KES {row['refund_reserved']} are under way"
            )
        reserved = await self._db.fetchrow(transition_sql.RESERVE, payment_id, wanted, now)
        if reserved is None:
            raise NotRefundable("this payment has changed meanwhile: try again")
        await self.step(payment_id, now, "refund_asked", Cause.MERCHANT, None, f"{refund_id}: KES {wanted}")
        return reserved, Kes(wanted)

    async def release(self, payment_id: str, reversal: Reversal, text: str) -> None:
        """A refund will not happen: what was set aside for it is free again."""
        now = self._clock.now()
        await self._db.execute(transition_sql.RELEASE, payment_id, int(reversal.amount), now)
        await self.step(payment_id, now, "refund_failed", Cause.REVERSAL, None, f"{reversal.refund_id}: {text}")

    async def reverse(self, payment_id: str, reversal: Reversal, cause: Cause = Cause.REVERSAL) -> None:
        """The one way to ``reversed`` and ``partially_reversed``: what was set aside has gone back to the payer."""
        now = self._clock.now()
        row = await self._db.fetchrow(transition_sql.REVERSE, payment_id, int(reversal.amount), now, reversal.receipt)
        if row is None:
            raise RuntimeError(f"{reversal.refund_id} has nothing set aside on {payment_id}")
        detail = f"{reversal.refund_id}: KES {int(reversal.amount)}"
        await self.step(payment_id, now, row["status"], cause, None, detail)
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
        log.info("payment_reversed", payment_id=payment_id, refund_id=reversal.refund_id, status=row["status"])

    # -- what is written besides ----------------------------------------------------------------------------------

    async def step(self, payment_id: str, at: datetime, kind: str, cause: Cause, code: str | None, detail: str) -> None:
        """Add an entry that a payment's own columns do not say to its timeline."""
        await self._db.put_off(Write(transition_sql.STEP, (payment_id, at, kind, cause.value, code, detail)))

    async def _publish_mismatch(self, row: Row, of: str, amount: str | None, receipt: str | None) -> None:
        values: Mapping[str, Any] = event_fields(row)
        event = PaymentMismatched(
            **values,
            mismatch=of,
            received_amount=amount,
            received_receipt=receipt,
        )
        await self._outbox.publish([event])
