"""Ends of refunds: completed, failed, or resolved by an operator."""

import asyncpg
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.http.confirmation import require_confirmed
from mpesa_gateway.money import Kes
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.errors import RefundEnded
from mpesa_gateway_refunds.events import RefundFailed
from mpesa_gateway_refunds.listing import find_refund
from mpesa_gateway_refunds.money import RefundMoney
from mpesa_gateway_refunds.result_codes import ReversalOutcome
from mpesa_gateway_refunds.schemas import RefundView, Resolution
from mpesa_gateway_refunds.tables import RefundRow, pending
from mpesa_gateway_refunds.views import view

log = structlog.get_logger(__name__)

DONE = ReversalOutcome("reversed", "the money went back to the payer", "")
"""The outcome of a completed reversal."""

CAME_IN = "M-Pesa reports success and names an incoming payment: check its portal"


class RefundCompletion:
    """The only writer of a refund's end. All methods but ``resolve`` need an open transaction and a locked refund."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        audit: Audit,
        outbox: Outbox,
        money: RefundMoney,
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._outbox = outbox
        self._money = money

    async def complete(
        self, row: Found, outcome: ReversalOutcome, code: str | None, text: str | None, receipt: str | None
    ) -> bool:
        """Complete a refund, also one that has failed and went through later.

        Returns False if no money is left for it; the end of another refund may free some.
        """
        shown = None if receipt == row["receipt"] else receipt
        if row["status"] == "completed":
            known = row["reversal_receipt"]
            if known is not None and shown not in {None, known}:
                await self.require_review(row, f"M-Pesa reports a second receipt, {shown}: check its portal")
            return True
        now = self._clock.now()
        refund_id = row["refund_id"]
        if shown is not None and await self._money.has_come_in(row["env"], shown):
            await self.require_review(row, CAME_IN)
            return True
        try:
            async with self._db.savepoint():
                if row["status"] == "failed":
                    await self._money.reserve_again(row)
                await self._db.run(
                    RefundRow.update(
                        {
                            RefundRow.status: "completed",
                            RefundRow.reversal: "ended",
                            RefundRow.outcome: outcome.word,
                            RefundRow.result_code: code,
                            RefundRow.result_desc: text,
                            RefundRow.reversal_receipt: shown,
                            RefundRow.advice: None,
                            RefundRow.attention: None,
                            RefundRow.due_at: None,
                            RefundRow.updated_at: now,
                            RefundRow.completed_at: now,
                        }
                    ).where(RefundRow.refund_id == refund_id, RefundRow.status != "completed")
                )
        except Conflict as problem:
            why = f"M-Pesa carried this refund out late, and its money is reserved for another: {problem.message}"
            await self.require_review(row, why)
            return False
        except asyncpg.UniqueViolationError:
            await self.require_review(row, f"M-Pesa reports the receipt {shown}, which another refund has")
            return True
        await self._money.complete(row, shown)
        log.info("refund_completed", refund_id=refund_id, outcome=outcome.word)
        return True

    async def fail(
        self, row: Found, outcome: ReversalOutcome, *, code: str, text: str, reversal: str = "ended"
    ) -> None:
        """Fail a refund: release the reserved money, and publish ``refund.failed`` unless nothing was sent."""
        now = self._clock.now()
        failed = await self._db.run(
            RefundRow.update(
                {
                    RefundRow.status: "failed",
                    RefundRow.reversal: reversal,
                    RefundRow.outcome: outcome.word,
                    RefundRow.result_code: code,
                    RefundRow.result_desc: text,
                    RefundRow.advice: outcome.advice,
                    RefundRow.attention: None,
                    RefundRow.due_at: None,
                    RefundRow.updated_at: now,
                }
            )
            .where(*pending(row["refund_id"]))
            .returning(RefundRow.refund_id)
        )
        if not failed:
            return
        await self._money.release(row, outcome.meaning)
        if reversal == "unsent":
            return
        await self._outbox.publish(
            [
                RefundFailed(
                    merchant_id=row["merchant_id"],
                    env=row["env"],
                    subject_id=row["refund_id"],
                    refund_id=row["refund_id"],
                    payment_id=row["payment_id"],
                    transaction_id=row["transaction_id"],
                    amount=Kes(row["amount"]).wire,
                    currency="KES",
                    provider="mpesa",
                    status="failed",
                    outcome=outcome.word,
                    advice=outcome.advice,
                    result_code=code,
                    result_desc=text,
                )
            ]
        )
        log.info("refund_failed", refund_id=row["refund_id"], outcome=outcome.word)

    async def require_review(self, row: Found, why: str) -> None:
        """Record on a locked refund why it needs review."""
        now = self._clock.now()
        if await self._db.fetchval(tables.NEEDS_ATTENTION, row["refund_id"], why, now) is not None:
            log.error("refund_needs_review", refund_id=row["refund_id"], why=why)

    async def resolve(self, env: Env, refund_id: str, resolution: Resolution, actor: str) -> RefundView:
        """End a refund of ``env`` as an operator decides from M-Pesa's portal.

        Raises NotFound, InvalidFields and RefundEnded.
        """
        require_confirmed(resolution.confirm, refund_id)
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK, refund_id)
            if row is None or row["env"] != env:
                raise NotFound("there is no such refund")
            await self._resolve(row, resolution)
            # Last, so that a transaction that waits for the audit log holds no contended lock.
            await self._audit.record(
                "refund.resolved",
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=refund_id,
                env=env,
                detail={"outcome": resolution.outcome, "note": resolution.note},
            )
        return view(await find_refund(self._db, row["merchant_id"], env, refund_id))

    async def _resolve(self, row: Found, resolution: Resolution) -> None:
        if row["attention"] is None:
            raise RefundEnded("only a refund that needs review can be resolved")
        note = resolution.note
        if row["status"] == resolution.outcome:
            await self._db.run(
                RefundRow.update({RefundRow.attention: None, RefundRow.updated_at: self._clock.now()}).where(
                    RefundRow.refund_id == row["refund_id"]
                )
            )
        elif resolution.outcome == "completed":
            if not await self.complete(row, DONE, "operator", note, None):
                raise RefundEnded("no money is left for this refund: another refund has it")
        elif row["status"] == "pending":
            outcome = ReversalOutcome("other", "an operator found no reversal", "request the refund again")
            await self.fail(row, outcome, code="operator", text=note)
        else:
            raise RefundEnded("this refund is completed and its money returned: this cannot be undone")
