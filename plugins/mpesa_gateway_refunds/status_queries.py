"""Asks M-Pesa by status query what became of reversals whose result is overdue."""

import asyncio
from datetime import datetime, timedelta

import structlog

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import DarajaClient, DarajaFault
from mpesa_gateway.daraja.refusals import api_error_of
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.errors import ApiError
from mpesa_gateway.queues import Jobs
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import TRANSACTION_STATUS, TransactionStatus
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.errors import RefundEnded
from mpesa_gateway_refunds.listing import find_refund
from mpesa_gateway_refunds.reversal_sender import ReversalSender
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.subjects import callback_subjects, callback_url
from mpesa_gateway_refunds.tables import RefundRow, pending

log = structlog.get_logger(__name__)

_ASKING = timedelta(seconds=60)
"""Time for which one worker claims a refund while it asks M-Pesa."""

_WOKEN_EACH = 20
"""Refunds of one merchant that one sweep hands over."""

_NEVER_SAID = "M-Pesa has not said what became of the reversal: look on its portal"


class RefundStatusQueries:
    """Queries due refunds, within a limit for each merchant. The answers come as callbacks."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: RefundsSettings,
        trace_links: TraceLinks,
        places: Bulkhead,
        daraja: DarajaClient,
        jobs: Jobs,
        callbacks: Callbacks,
        credentials: Credentials,
        endings: RefundCompletion,
        sender: ReversalSender,
    ) -> None:
        """``daraja`` and ``jobs`` return those of the running gateway; ``places`` bounds the queries at one time."""
        self._db = db
        self._clock = clock
        self._settings = settings
        self._trace_links = trace_links
        self._places = places
        self._daraja = daraja
        self._jobs = jobs
        self._callbacks = callbacks
        self._credentials = credentials
        self._endings = endings
        self._sender = sender

    async def wake_due(self) -> int:
        """Hand the refunds whose result is overdue to the queue, some of each merchant; returns their count."""
        rows = await self._db.fetch(tables.DUE, self._clock.now(), 200, _WOKEN_EACH)
        for row in rows:
            refund_id, merchant_id = row["refund_id"], row["merchant_id"]
            await self._jobs.enqueue("refunds.ask", once=refund_id, refund_id=refund_id, merchant_id=merchant_id)
        return len(rows)

    async def ask_if_slot_free(self, refund_id: str, merchant_id: str) -> bool:
        """Like ``ask``. False, and the refund stays due, while enough of its merchant's refunds are asked about."""
        with self._places.acquire(merchant_id) as has_place:
            return has_place and await self.ask(refund_id)

    async def ask(self, refund_id: str, *, is_forced: bool = False) -> bool:
        """Ask M-Pesa what became of a reversal; False when it is not due, has ended, or another worker is asking.

        By its conversation where the ack is known, else by the payment's receipt. It is never sent again. Raises
        ProviderNotConfigured, ProviderRejected and ProviderUnavailable if ``is_forced``.
        """
        self._db.refuse_transaction("asking M-Pesa about a refund")
        now = self._clock.now()
        leased_until = now + _ASKING
        claimed: list[Found] = await self._db.run(
            RefundRow.update({RefundRow.asked: RefundRow.asked + 1, RefundRow.due_at: leased_until})
            .where(*pending(refund_id), RefundRow.due_at <= now)
            .returning(*RefundRow.all_columns())
        )
        if not claimed:
            return False
        (row,) = claimed
        structlog.contextvars.bind_contextvars(payment_id=row["payment_id"])
        self._trace_links.link(refund_id)
        if row["asked"] > len(self._settings.query_after) and not is_forced:
            async with self._db.transaction():
                await self._endings.require_review(row, row["attention"] or _NEVER_SAID)
            return True
        if row["reversal"] == "ready":
            await self._sender.close_unsent(row)
            return True
        refusal: ApiError | None = None
        try:
            await self._question(row)
        except DarajaFault as fault:
            self._places.record_answer(row["merchant_id"], answered=fault.code is not None)
            log.info("refund_status_query_unanswered", refund_id=refund_id, fault=fault.meaning)
            refusal = api_error_of(fault)
        except ApiError as problem:
            # Such as: the credentials were removed, or have no initiator any more.
            log.warning("refund_status_query_not_sent", refund_id=refund_id, problem=problem.message)
            refusal = problem
        except asyncio.CancelledError:
            # We are told to stop: who takes the job over asks at once.
            await self._db.execute(tables.ASK_AGAIN, refund_id, leased_until, now)
            raise
        else:
            self._places.record_answer(row["merchant_id"], answered=True)
        # Unless the answer, or a result, was quicker.
        await self._db.execute(tables.ASK_AGAIN, refund_id, leased_until, self._next_ask(row, now))
        if is_forced and refusal is not None:
            raise refusal
        return True

    async def ask_now(self, merchant_id: str, env: Env, refund_id: str) -> None:
        """Ask at once. Raises NotFound, RefundEnded without anything to ask about, and why M-Pesa was not asked."""
        self._db.refuse_transaction("asking M-Pesa about a refund")
        row = await find_refund(self._db, merchant_id, env, refund_id)
        if row["status"] != "pending":
            raise RefundEnded("this refund has ended")
        await self._db.run(RefundRow.update({RefundRow.due_at: self._clock.now()}).where(*pending(refund_id)))
        await self.ask(refund_id, is_forced=True)

    async def _question(self, row: Found) -> None:
        """Ask about the reversal by its conversation where the ack told it, else about the payment by its receipt."""
        credentials = await self._credentials.of_shortcode(row["shortcode_id"])
        by_conversation = row["reversal"] == "accepted" and row["originator_conversation_id"] is not None
        about_reversal, about_payment = callback_subjects(row["refund_id"])
        subject = about_reversal if by_conversation else about_payment
        question = TransactionStatus(
            initiator=credentials.initiator_for("a refund"),
            receipt=None if by_conversation else row["receipt"],
            conversation_id=row["originator_conversation_id"] if by_conversation else None,
            result_url=callback_url(self._callbacks, "status", credentials, subject),
            timeout_url=callback_url(self._callbacks, "status-timeout", credentials, subject),
            remarks=f"reversal of {row['receipt']}",
        )
        await self._daraja.call(TRANSACTION_STATUS, credentials.daraja, question)

    def _next_ask(self, row: Found, now: datetime) -> datetime:
        schedule = self._settings.query_after
        return now + timedelta(seconds=schedule[min(int(row["asked"]), len(schedule) - 1)])
