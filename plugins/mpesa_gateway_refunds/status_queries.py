"""Status queries about reversals whose result is overdue."""

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
from mpesa_gateway_refunds.source import source_of
from mpesa_gateway_refunds.subjects import callback_subjects, callback_url
from mpesa_gateway_refunds.tables import RefundRow, pending

log = structlog.get_logger(__name__)

_LEASE = timedelta(seconds=60)
"""Time for which a worker claims a refund during its query."""

_ENQUEUED_EACH = 20
"""Refunds of one merchant that one sweep enqueues."""

_NEVER_REPORTED = "M-Pesa has not reported the result of the reversal: check its portal"


class RefundStatusQueries:
    """Queries due refunds, within a limit per merchant. The answers are callbacks."""

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
        completion: RefundCompletion,
        sender: ReversalSender,
    ) -> None:
        """``places`` limits concurrent queries."""
        self._db = db
        self._clock = clock
        self._settings = settings
        self._trace_links = trace_links
        self._places = places
        self._daraja = daraja
        self._jobs = jobs
        self._callbacks = callbacks
        self._credentials = credentials
        self._completion = completion
        self._sender = sender

    async def wake_due(self) -> int:
        """Enqueue due refunds, a limited number per merchant; returns their count."""
        rows = await self._db.fetch(tables.DUE, self._clock.now(), 200, _ENQUEUED_EACH)
        for row in rows:
            refund_id, merchant_id = row["refund_id"], row["merchant_id"]
            await self._jobs.enqueue("refunds.query", once=refund_id, refund_id=refund_id, merchant_id=merchant_id)
        return len(rows)

    async def ask_if_slot_free(self, refund_id: str, merchant_id: str) -> bool:
        """Like ``ask``, but returns False while the merchant's queries reach their limit; the refund stays due."""
        with self._places.acquire(merchant_id) as has_place:
            return has_place and await self.ask(refund_id)

    async def ask(self, refund_id: str, *, is_forced: bool = False) -> bool:
        """Query a reversal's state; returns False if it is not due or another worker has claimed it.

        Queries by the conversation in the ack, else by the payment's receipt. The reversal is never sent again. If
        ``is_forced``, raises ProviderNotConfigured, ProviderRejected and ProviderUnavailable.
        """
        self._db.refuse_transaction("querying a refund")
        now = self._clock.now()
        leased_until = now + _LEASE
        claimed: list[Found] = await self._db.run(
            RefundRow.update({RefundRow.asked: RefundRow.asked + 1, RefundRow.due_at: leased_until})
            .where(*pending(refund_id), RefundRow.due_at <= now)
            .returning(*RefundRow.all_columns())
        )
        if not claimed:
            return False
        (row,) = claimed
        structlog.contextvars.bind_contextvars(**source_of(row).named)
        self._trace_links.link(refund_id)
        if row["asked"] > len(self._settings.query_after) and not is_forced:
            async with self._db.transaction():
                await self._completion.require_review(row, row["attention"] or _NEVER_REPORTED)
            return True
        if row["reversal"] == "ready":
            await self._sender.close_unsent(row)
            return True
        refusal: ApiError | None = None
        try:
            await self._send_query(row)
        except DarajaFault as fault:
            self._places.record_answer(row["merchant_id"], answered=fault.code is not None)
            log.info("refund_status_query_unanswered", refund_id=refund_id, fault=fault.meaning)
            refusal = api_error_of(fault)
        except ApiError as problem:
            # For example, the credentials were removed or have no initiator.
            log.warning("refund_status_query_not_sent", refund_id=refund_id, problem=problem.message)
            refusal = problem
        except asyncio.CancelledError:
            # The worker stops. The next one asks at once.
            await self._db.execute(tables.ASK_AGAIN, refund_id, leased_until, now)
            raise
        else:
            self._places.record_answer(row["merchant_id"], answered=True)
        # No change if a callback came first.
        await self._db.execute(tables.ASK_AGAIN, refund_id, leased_until, self._next_ask(row, now))
        if is_forced and refusal is not None:
            raise refusal
        return True

    async def ask_now(self, merchant_id: str, env: Env, refund_id: str) -> None:
        """Query at once. Raises NotFound, RefundEnded, and the reason why no query was sent."""
        self._db.refuse_transaction("querying a refund")
        row = await find_refund(self._db, merchant_id, env, refund_id)
        if row["status"] != "pending":
            raise RefundEnded("this refund has ended")
        await self._db.run(RefundRow.update({RefundRow.due_at: self._clock.now()}).where(*pending(refund_id)))
        await self.ask(refund_id, is_forced=True)

    async def _send_query(self, row: Found) -> None:
        credentials = await self._credentials.of_shortcode(row["shortcode_id"])
        by_conversation = row["reversal"] == "accepted" and row["originator_conversation_id"] is not None
        about_reversal, about_payment = callback_subjects(row["refund_id"])
        subject = about_reversal if by_conversation else about_payment
        query = TransactionStatus(
            initiator=credentials.initiator_for("a refund"),
            receipt=None if by_conversation else row["receipt"],
            conversation_id=row["originator_conversation_id"] if by_conversation else None,
            result_url=callback_url(self._callbacks, "status", credentials, subject),
            timeout_url=callback_url(self._callbacks, "status-timeout", credentials, subject),
            remarks=f"reversal of {row['receipt']}",
        )
        await self._daraja.call(TRANSACTION_STATUS, credentials.daraja, query)

    def _next_ask(self, row: Found, now: datetime) -> datetime:
        schedule = self._settings.query_after
        return now + timedelta(seconds=schedule[min(int(row["asked"]), len(schedule) - 1)])
