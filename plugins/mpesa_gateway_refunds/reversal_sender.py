"""Sending of reversals, and their outcomes: accepted, refused, unsent or unknown."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import Ack, DarajaClient, DarajaFault, NotSent, OutcomeUnknown, Rejected
from mpesa_gateway.daraja.refusals import api_error_of
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE, Database, Found
from mpesa_gateway.db.outcomes import OutcomeWriter
from mpesa_gateway.money import Kes
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import MpesaCredentials
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.listing import find_refund
from mpesa_gateway_refunds.operations import REVERSAL, ReversalRequest
from mpesa_gateway_refunds.result_codes import ReversalOutcome
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.source import source_of
from mpesa_gateway_refunds.subjects import callback_url
from mpesa_gateway_refunds.tables import RefundRow, pending

log = structlog.get_logger(__name__)

_MARK_WITHIN = 5.0
"""Seconds to commit the mark before a reversal; without it nothing is sent."""


class ReversalSender:
    """Sends one reversal per refund. A mark is committed before the call, the outcome after it."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: RefundsSettings,
        trace_links: TraceLinks,
        daraja: DarajaClient,
        outcomes: OutcomeWriter,
        callbacks: Callbacks,
        completion: RefundCompletion,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._trace_links = trace_links
        self._daraja = daraja
        self._outcomes = outcomes
        self._callbacks = callbacks
        self._completion = completion

    async def send(self, row: Found, credentials: MpesaCredentials, key: str | None) -> Found:
        """Send a refund's reversal and record the outcome; returns the refund.

        Raises ProviderUnavailable if nothing was sent, and ProviderRejected if M-Pesa refused the reversal.
        """
        self._db.refuse_transaction("asking for a refund")
        refund_id = row["refund_id"]
        structlog.contextvars.bind_contextvars(**source_of(row).named)
        self._trace_links.begin(refund_id)
        try:
            await self._daraja.prepare(credentials.daraja)
            if not await self._mark_sending(row):
                # This request exceeded its lease, and the refund was closed.
                return await find_refund(self._db, row["merchant_id"], row["env"], refund_id)
            reversal = ReversalRequest(
                initiator=credentials.initiator_for("a refund"),
                receipt=row["receipt"],
                amount=Kes(row["amount"]),
                result_url=credentials.result_url or callback_url(self._callbacks, "reversal", credentials, refund_id),
                timeout_url=credentials.timeout_url
                or callback_url(self._callbacks, "reversal-timeout", credentials, refund_id),
                remarks=row["reason"] or f"Refund {refund_id[-12:]}",
            )
            ack = await self._daraja.call(REVERSAL, credentials.daraja, reversal)
        except OutcomeUnknown as fault:
            return await self._record("unknown", row, partial(self._write_unknown, row, key, fault))
        except (NotSent, Rejected) as fault:
            await self._record("refusal", row, partial(self._write_refusal, row, key, fault))
            raise api_error_of(fault, refund_id) from None
        known = {
            "originator_conversation_id": ack.originator_conversation_id,
            "conversation_id": ack.conversation_id,
        }
        return await self._record("ack", row, partial(self._write_ack, row, key, ack), known)

    async def _mark_sending(self, row: Found) -> bool:
        """Commit the mark; returns False if nothing may be sent. Raises NotSent without Postgres."""
        try:
            async with asyncio.timeout(_MARK_WITHIN):
                # Committed before the call: a refund that is still ``ready`` was never sent.
                marked = await self._db.run(
                    RefundRow.update({RefundRow.reversal: "sending"})
                    .where(
                        RefundRow.refund_id == row["refund_id"],
                        RefundRow.attempt == row["attempt"],
                        RefundRow.reversal == "ready",
                    )
                    .returning(RefundRow.refund_id)
                )
        except (*UNREACHABLE, *OVERLOADED) as problem:
            log.warning("reversal_not_marked", refund_id=row["refund_id"], error=type(problem).__name__)
            raise NotSent("the gateway cannot write to its database now", retry_after=5) from None
        return bool(marked)

    async def _record(
        self, what: str, row: Found, write: Callable[[], Awaitable[None]], known: Mapping[str, Any] | None = None
    ) -> Found:
        async def written() -> Found:
            await write()
            return await find_refund(self._db, row["merchant_id"], row["env"], row["refund_id"])

        found = await self._outcomes.record(f"reversal {what}", row["refund_id"], written)
        return found if found is not None else dict(row) | dict(known or {})

    async def _write_ack(self, row: Found, key: str | None, ack: Ack) -> None:
        now = self._clock.now()
        await self._settle_key(row, key)
        due = now + timedelta(seconds=self._settings.query_after[0])
        originator, conversation = ack.originator_conversation_id, ack.conversation_id
        await self._db.execute(tables.ACCEPTED, row["refund_id"], originator, conversation, now, due)
        for handle in sorted({originator, conversation}):
            await self._callbacks.apply_waiting(handle)

    async def _write_unknown(self, row: Found, key: str | None, fault: OutcomeUnknown) -> None:
        now = self._clock.now()
        await self._settle_key(row, key)
        due = now + timedelta(seconds=self._settings.query_after[0])
        await self._db.run(
            RefundRow.update(
                {
                    RefundRow.reversal: "unknown",
                    RefundRow.result_desc: fault.meaning,
                    RefundRow.updated_at: now,
                    RefundRow.due_at: due,
                }
            ).where(*pending(row["refund_id"]), RefundRow.reversal == "sending")
        )
        log.warning("reversal_outcome_unknown", refund_id=row["refund_id"], fault=fault.meaning)

    async def _write_refusal(self, row: Found, key: str | None, fault: DarajaFault) -> None:
        # Nothing was reversed, so the money is released. An unsent refund can be requested again with the same key.
        if key is not None:
            await idempotency.lock(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)
        found = await self._db.fetchrow(tables.LOCK, row["refund_id"])
        if found is None or found["attempt"] != row["attempt"] or found["status"] != "pending":
            # The refusal is already written, or M-Pesa's result came first.
            await self._settle_key_of(found, row, key)
            return
        if isinstance(fault, NotSent):
            outcome = ReversalOutcome("other", fault.meaning, "request the refund again")
            await self._completion.fail(row, outcome, code="unsent", text=fault.explained, reversal="unsent")
            if key is not None:
                await idempotency.release(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)
        else:
            outcome = ReversalOutcome("rejected_by_provider", fault.meaning, fault.mitigation)
            await self._completion.fail(
                row, outcome, code=fault.code or "refused", text=fault.explained, reversal="refused"
            )
            await self._settle_key(row, key)

    async def _settle_key_of(self, found: Found | None, row: Found, key: str | None) -> None:
        """Settle the key, unless it was released or belongs to a later attempt."""
        if found is not None and found["attempt"] == row["attempt"] and found["reversal"] != "unsent":
            await self._settle_key(row, key)

    async def _settle_key(self, row: Found, key: str | None) -> None:
        if key is not None:
            await idempotency.settle(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)

    async def close_unsent(self, row: Found) -> None:
        """Fail a refund whose process ended before the call, and release its money."""
        key = row["idempotency_key"]
        async with self._db.transaction():
            if key is not None:
                await idempotency.close(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)
            found = await self._db.fetchrow(tables.LOCK, row["refund_id"])
            if found is None or found["reversal"] != "ready" or found["attempt"] != row["attempt"]:
                return
            outcome = ReversalOutcome("other", "the reversal was never sent", "request the refund again")
            await self._completion.fail(found, outcome, code="unsent", text=outcome.meaning, reversal="refused")
