"""STK queries about pending payments, and their answers."""

import asyncio
import time
from datetime import datetime, timedelta

import structlog

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import DarajaClient, NotSent, OutcomeUnknown, Rejected
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.erasure import matches_handle
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.queues import Jobs
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments import due_sql, tables
from mpesa_gateway_payments.decisions import StkAnswer
from mpesa_gateway_payments.errors import NotQueryable
from mpesa_gateway_payments.evidence import Evidence, Handle, Proof, Source
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.listing import find_payment
from mpesa_gateway_payments.matching import names_payment
from mpesa_gateway_payments.operations import STK_QUERY, StkQuery
from mpesa_gateway_payments.paused_shortcodes import PausedShortcodes
from mpesa_gateway_payments.result_codes import Outcome
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Status
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.unacknowledged import UnacknowledgedPushes
from mpesa_gateway_payments.verdicts import payment_of

log = structlog.get_logger(__name__)

_ASKING = timedelta(seconds=60)
"""Lease of a payment during its query."""

_ASK_FOR = 20.0
"""Seconds after which a shortcode's job starts no more queries."""

_LAST_ASK = timedelta(seconds=45)
"""Time before expiry of the last query: longer than a call to Daraja takes."""


class StkQueries:
    """Queries due payments concurrently and applies the answers."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: PaymentsSettings,
        trace_links: TraceLinks,
        places: Bulkhead,
        daraja: DarajaClient,
        jobs: Jobs,
        credentials: Credentials,
        transitions: Transitions,
        expiry: Expiry,
        unacknowledged: UnacknowledgedPushes,
        paused: PausedShortcodes,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._trace_links = trace_links
        self._places = places
        self._daraja = daraja
        self._jobs = jobs
        self._credentials = credentials
        self._transitions = transitions
        self._expiry = expiry
        self._unacknowledged = unacknowledged
        self._paused = paused

    async def enqueue_due(self) -> int:
        """Enqueue a job for each shortcode with due payments; return their number."""
        rows = await self._db.fetch(due_sql.DUE_SHORTCODES, self._clock.now())
        for row in rows:
            shortcode_id = row["shortcode_id"]
            await self._jobs.enqueue("payments.query", once=shortcode_id, shortcode_id=shortcode_id)
        return len(rows)

    async def query_due(self, shortcode_id: str) -> int:
        """Query a shortcode's due payments, ``max_concurrent_queries`` at a time; return their number.

        Stops after 20 s or without answers from Daraja; the rest stays due. Raises the first error after all queries
        have ended.
        """
        self._db.refuse_transaction("sending STK queries")
        count = 0
        failed: list[BaseException] = []
        with self._places.acquire(shortcode_id) as has_place:
            until = time.monotonic() + _ASK_FOR
            while has_place and time.monotonic() < until:
                now = self._clock.now()
                rows = await self._db.fetch(
                    due_sql.CLAIM_DUE_OF, shortcode_id, now, now + _ASKING, self._settings.max_concurrent_queries
                )
                asked = await asyncio.gather(*(self._ask_claimed(row, now) for row in rows), return_exceptions=True)
                failed += [one for one in asked if one is not None]
                count += len(rows)
                rests = (
                    self._places.is_unresponsive(shortcode_id) or self._paused.paused_until(shortcode_id) is not None
                )
                if rests or len(rows) < self._settings.max_concurrent_queries:
                    break
        if failed:
            raise failed[0]
        return count

    async def query_payment(self, payment_id: str, *, is_forced: bool = False) -> bool:
        """Query a pending payment, or expire it.

        Returns False if it is not due, has ended, or is claimed by another worker.
        """
        self._db.refuse_transaction("sending an STK query")
        now = self._clock.now()
        row = await due_sql.claim_due(self._db, payment_id, now, now + _ASKING, is_forced=is_forced)
        if row is None:
            return False
        await self._ask_claimed(row, now)
        return True

    async def query_now(self, merchant_id: str, env: Env, payment_id: str) -> None:
        """Raises NotFound, ProviderNotConfigured and NotQueryable."""
        self._db.refuse_transaction("sending an STK query")
        row = await find_payment(self._db, merchant_id, env, payment_id)
        await self._credentials.of_shortcode(row["shortcode_id"])
        is_open = row["status"] == Status.PENDING.value or row["failure_reason"] == "expired"
        if not is_open or row["checkout_request_id"] is None:
            raise NotQueryable("only a pending or expired payment that M-Pesa has acknowledged can be queried")
        await self.query_payment(payment_id, is_forced=True)

    async def _ask_claimed(self, row: Found, now: datetime) -> None:
        payment_id = row["payment_id"]
        structlog.contextvars.bind_contextvars(payment_id=payment_id)
        self._trace_links.link(payment_id)
        if row["checkout_request_id"] is None:
            await self._unacknowledged.close(payment_id, now)
            return
        try:
            outcome, again_at = await self._ask_daraja(row)
        except asyncio.CancelledError:
            # On shutdown the next worker must query at once.
            await due_sql.set_next_query(self._db, payment_id, now)
            raise
        async with self._db.transaction():
            # A callback may have changed the payment.
            locked = await self._db.fetchrow(tables.LOCK, [payment_id])
            if locked is not None and again_at is not None and now < locked["expires_at"]:
                await due_sql.set_next_query(self._db, payment_id, again_at)
            elif locked is not None:
                await self._apply_answer(locked, outcome, now)

    async def _apply_answer(self, row: Row, outcome: Outcome | None, now: datetime) -> None:
        payment_id = row["payment_id"]
        is_expired = row["status"] == Status.FAILED.value and row["failure_reason"] == "expired"
        if outcome is not None and not outcome.is_pending:
            await self._transitions.apply(row, StkAnswer(outcome))
            if is_expired and not outcome.is_paid:
                # The merchant already knows that the payment failed.
                await due_sql.set_next_query(self._db, payment_id, None)
        elif now < row["expires_at"]:
            await due_sql.set_next_query(self._db, payment_id, self._next_ask(row, now))
        elif row["status"] == Status.PENDING.value or row["claim"] is not None:
            await self._expiry.end(row)
        elif is_expired:
            await due_sql.set_next_query(self._db, payment_id, self._expiry.next_query_at(row, now))

    async def _ask_daraja(self, row: Found) -> tuple[Outcome | None, datetime | None]:
        shortcode_id = row["shortcode_id"]
        if (paused_until := self._paused.paused_until(shortcode_id)) is not None:
            return None, paused_until
        try:
            credentials = await self._credentials.of_shortcode(shortcode_id)
            question = StkQuery(row["checkout_request_id"])
            answer = await self._daraja.call(STK_QUERY, credentials.daraja, question)
        except NotSent as fault:
            self._places.record_answer(shortcode_id, answered=fault.code is not None)
            again_at = self._paused.pause(shortcode_id, fault)
            log.info("stk_query_not_sent", payment_id=row["payment_id"], fault=fault.meaning)
            return None, again_at
        except (OutcomeUnknown, Rejected) as fault:
            self._places.record_answer(shortcode_id, answered=fault.code is not None)
            log.info("stk_query_unanswered", payment_id=row["payment_id"], fault=fault.meaning)
            return None, None
        except ProviderNotConfigured:
            log.warning("stk_query_without_credentials", payment_id=row["payment_id"])
            return None, None
        self._places.record_answer(shortcode_id, answered=True)
        handle = Handle(row["payment_id"], answer.checkout_request_id)
        named = Evidence(source=Source.STK_QUERY, proof=Proof.ANSWER, handle=handle)
        # A success must name the push.
        is_named = bool(answer.checkout_request_id) or not answer.outcome.is_paid
        stated, known = answer.merchant_request_id, row["merchant_request_id"]
        is_other = stated is not None and known is not None and not matches_handle(stated, known)
        if is_named and not is_other and names_payment(named, payment_of(row)):
            return answer.outcome, None
        log.error("stk_query_about_another_push", payment_id=row["payment_id"])
        return None, None

    def _next_ask(self, row: Row, now: datetime) -> datetime:
        """The schedule counts from the push; its last pause repeats."""
        schedule = self._settings.query_after
        expires_at: datetime = row["expires_at"]
        # A resent push counts from its own time.
        pushed_at = max(row["created_at"], expires_at - timedelta(seconds=self._settings.expire_after))
        age = (now - pushed_at).total_seconds()
        later = next((pause for pause in schedule if pause > age), None)
        at = pushed_at + timedelta(seconds=later) if later is not None else now + timedelta(seconds=schedule[-1])
        # The last query leaves time for its answer; afterwards the payment only expires.
        last: datetime = expires_at - min(_LAST_ASK, (expires_at - pushed_at) / 10)
        if last <= now:
            return expires_at + _ASKING
        return min(at, max(last, now + timedelta(seconds=1)))
