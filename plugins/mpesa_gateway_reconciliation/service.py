"""Reconciliation runs: read the statement, store each line once, complete the payments that it proves."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.call_slots import released_slot
from mpesa_gateway.daraja.client import DarajaFault, OutcomeUnknown, Rejected
from mpesa_gateway.daraja.wire import StatementLine, StatementPage
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE, Row
from mpesa_gateway.errors import check_fields
from mpesa_gateway.logs import trace
from mpesa_gateway.money import Kes
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.tracing import child_span, set_error
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_payments.api import Zone
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.errors import RunInProgress, RunLost
from mpesa_gateway_reconciliation.line_evidence import possible_times_of, reported_transaction
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.metrics import ReconciliationMetrics
from mpesa_gateway_reconciliation.operations import PULL_QUERY, PullQuery
from mpesa_gateway_reconciliation.registration import registered_at
from mpesa_gateway_reconciliation.run_reader import RunReader
from mpesa_gateway_reconciliation.schemas import (
    RunView,
    Window,
)
from mpesa_gateway_reconciliation.settings import ReconciliationSettings
from mpesa_gateway_reconciliation.tables import RunRow
from mpesa_gateway_reconciliation.turns import Turns
from mpesa_gateway_transactions.api import RecordedTransaction, ReportedTransaction, Transactions

log = structlog.get_logger(__name__)

FARTHEST = timedelta(hours=48)
"""Pull returns at most the last 48 hours (Safaricom's portal)."""

REACH = timedelta(hours=47, minutes=55)
"""Longest regular window: leaves five minutes for the request."""

OVERLAP = timedelta(minutes=10)
"""Overlap with the previous window: lines have appeared late."""

_LEASE = timedelta(seconds=60)
"""A run without a heartbeat for this long is lost."""

_BEAT = 15.0
"""Seconds between a run's heartbeats."""

_SLOW = timedelta(seconds=60)
"""Longest run of a shortcode that gets any free slot."""

_STOPPED = "the process that ran it was stopped"

_PAGE_ROWS = 100
"""Rows of a full page (Safaricom's portal); a shorter page is the last."""
_MOST_PAGES = 2_000
_MOST_UNREADABLE = 10
"""Limits of a statement: pages, and consecutive pages without a readable line."""


class ReconciliationService:
    """Runs reconciliations. A run is stored before its first request; a receiver has one at a time."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        credentials: Credentials,
        line_matching: LineMatching,
        runs: RunReader,
        transactions: Transactions,
    ) -> None:
        self._runtime = runtime
        self._counter = runtime.metrics.get(ReconciliationMetrics).runs
        self._db = runtime.db
        self._settings = runtime.settings(ReconciliationSettings)
        self._credentials = credentials
        self._line_matching = line_matching
        self._runs = runs
        self._transactions = transactions
        self._places = Bulkhead(self._settings.max_concurrent, each=1)
        self._turns = Turns()
        self._at_work: set[asyncio.Future[None]] = set()

    async def run_now(self, caller: Caller, window: Window) -> RunView:
        """Reconcile a window, by default the last ``window_hours``; return the run, perhaps still running.

        The window names the shortcode, by default the default one. Raises InvalidFields, RunInProgress,
        ProviderNotConfigured and ReceiverOwned.
        """
        self._db.refuse_transaction("a reconciliation run")
        start, end = self._read_window(window)
        credentials = await self._credentials.get(caller.merchant_id, caller.env, window.shortcode)
        credentials.check_owner("reconciliation")
        credentials.nominated_for("reconciliation (Pull)")
        run = await self._begin(credentials, "manual", start, end)
        # The run continues without its caller.
        work = asyncio.ensure_future(self._run(run, credentials))
        self._at_work.add(work)
        work.add_done_callback(self._at_work.discard)
        with suppress(TimeoutError), released_slot():
            await asyncio.wait_for(asyncio.shield(work), self._settings.wait)
        return await self._runs.get(caller.merchant_id, caller.env, run["run_id"])

    async def run_due(self, shortcode_id: str) -> bool:
        """Run the regular reconciliation of a shortcode; return False if it did not run.

        The window extends back to the end of the last regular run. Without one of the ``max_concurrent`` slots, the
        shortcode waits for its turn.
        """
        self._db.refuse_transaction("a reconciliation run")
        try:
            with self._places.acquire(shortcode_id) as has_slot:
                if not has_slot:
                    self._turns.wait(shortcode_id)
                    return False
                self._turns.end(shortcode_id)
                return await self._run_due(shortcode_id)
        finally:
            # Also without a slot: another shortcode may have room where an unresponsive one has none.
            if woken := self._turns.wake(self._places.is_free):
                self._runtime.jobs.wake("reconciliation.reconcile", once=woken, shortcode_id=woken)

    async def _run_due(self, shortcode_id: str) -> bool:
        credentials = await self._credentials.of_shortcode(shortcode_id)
        if not credentials.is_owner:
            return False
        now = self._runtime.clock.now()
        reached = await self._db.fetchval(
            tables.REACHED, credentials.merchant_id, credentials.env, credentials.shortcode
        )
        usual = now - timedelta(hours=self._settings.window_hours)
        start = now - REACH if reached is None else max(min(usual, reached - OVERLAP), now - REACH)
        try:
            run = await self._begin(credentials, "cron", start, now)
        except RunInProgress:
            return False
        await self._run(run, credentials)
        return True

    async def enqueue_all(self) -> int:
        """Enqueue a run for each shortcode with a readable statement, the one read least recently first.

        Returns their number.
        """
        sources = await self._credentials.statement_sources()
        rows = await self._db.fetch(tables.LEAST_RECENTLY_READ, [source.shortcode_id for source in sources])
        for row in rows:
            shortcode_id = row["shortcode_id"]
            await self._runtime.jobs.enqueue("reconciliation.reconcile", once=shortcode_id, shortcode_id=shortcode_id)
        return len(sources)

    def _read_window(self, window: Window) -> tuple[datetime, datetime]:
        now = self._runtime.clock.now()
        end = window.end or now
        with check_fields() as checks:
            if end < now - FARTHEST:
                # First: arithmetic on a time near year 1 overflows.
                checks.fail("end", "must be within the last 48 hours: M-Pesa keeps no older statements")
        start = window.start or end - timedelta(hours=self._settings.window_hours)
        with check_fields() as checks:
            if start < now - FARTHEST:
                checks.fail("start", "must be within the last 48 hours: M-Pesa keeps no older statements")
            if end > now + timedelta(minutes=1):
                checks.fail("end", "must not be in the future")
            if start >= end:
                checks.fail("end", "must be after start")
        return start, end

    async def _begin(self, credentials: MpesaCredentials, cause: str, start: datetime, end: datetime) -> Row:
        now = self._runtime.clock.now()
        async with self._db.transaction():
            interrupted: dict[Any, Any] = {
                RunRow.status: "failed",
                RunRow.error: _STOPPED,
                RunRow.lease_until: None,
                RunRow.finished_at: now,
            }
            await self._db.run(
                RunRow.update(interrupted).where(
                    RunRow.receiver_id == credentials.receiver_id,
                    RunRow.status == "running",
                    RunRow.lease_until < now,
                )
            )
            run = await self._db.fetchrow(
                *tables.START_RUN.bind(
                    run_id=self._runtime.ids.new("run", now),
                    merchant_id=credentials.merchant_id,
                    env=credentials.env,
                    shortcode=credentials.shortcode,
                    cause=cause,
                    window_start=start,
                    window_end=end,
                    lease_until=now + _LEASE,
                    started_at=now,
                    receiver_id=credentials.receiver_id,
                )
            )
        if run is None:
            raise RunInProgress("a reconciliation of this shortcode is running: wait until it has finished")
        return run

    async def _run(self, run: Row, credentials: MpesaCredentials) -> None:
        attributes = {
            "mpesa.run_id": run["run_id"],
            "mpesa.merchant_id": run["merchant_id"],
            "mpesa.cause": run["cause"],
        }
        with child_span(self._runtime.tracer, "reconciliation run", attributes) as span:
            if await self._run_windows(run, credentials) == "failed":
                set_error(span, "failed")

    async def _run_windows(self, run: Row, credentials: MpesaCredentials) -> str:
        error: str | None = _STOPPED
        beat = asyncio.create_task(self._beat(run["run_id"]))
        try:
            await self._read(run, credentials)
            await self._line_matching.match_window(run, credentials)
            error = None
            # Shortcodes whose statements take long share the slots of unresponsive ones.
            took = self._runtime.clock.now() - run["started_at"]
            self._places.record_answer(credentials.shortcode_id, answered=took <= _SLOW)
        except DarajaFault as fault:
            self._places.record_answer(credentials.shortcode_id, answered=fault.code is not None)
            error = await self._error_text(fault, credentials)
            log.warning("reconciliation_failed", run_id=run["run_id"], fault=fault.meaning)
        except RunLost:
            log.warning("reconciliation_lease_lost", run_id=run["run_id"])
        except Exception as problem:  # noqa: BLE001 - the error is stored in the run
            error = f"unexpected: {type(problem).__name__}"
            log.error("reconciliation_failed", run_id=run["run_id"], exception=trace(problem))
        finally:
            # Even if cancelled: the next run must not wait for this lease.
            beat.cancel()
            status = "completed" if error is None else "failed"
            await self._db.execute(tables.FINISH, run["run_id"], status, error, self._runtime.clock.now())
            self._counter.labels(status).inc()
            log.info("reconciliation_finished", run_id=run["run_id"], status=status)
        return status

    async def _error_text(self, fault: DarajaFault, credentials: MpesaCredentials) -> str:
        text = f"{fault.meaning}: {fault.mitigation}" if fault.mitigation else fault.meaning
        shortcode = credentials.shortcode
        if isinstance(fault, Rejected) and not await registered_at(
            self._db, credentials.merchant_id, credentials.env, shortcode
        ):
            named = "" if credentials.is_default else f"?shortcode={shortcode}"
            page = f"/ops/credentials/{credentials.merchant_id}?env={credentials.env}"
            call = f"POST /v1/payments/mpesa/pull/register{named}"
            return f"Pull is not registered for {shortcode}: use the button Register at {page}, or {call} ({text})"
        return text

    async def _beat(self, run_id: str) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            try:
                await self._db.run(
                    RunRow.update({RunRow.lease_until: self._runtime.clock.now() + _LEASE}).where(
                        RunRow.run_id == run_id, RunRow.status == "running"
                    )
                )
            except (*UNREACHABLE, *OVERLOADED) as problem:
                log.warning("reconciliation_lease_not_extended", run_id=run_id, error=type(problem).__name__)

    async def start(self) -> None:
        """Runs start on request."""

    async def stop(self) -> None:
        at_work = list(self._at_work)
        for work in at_work:
            work.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)

    async def _read(self, run: Row, credentials: MpesaCredentials) -> None:
        """Read pages until one holds nothing new. Raises RunLost and DarajaFault."""
        offset = unreadable = 0
        for _ in range(_MOST_PAGES):
            page = await self._ask(
                credentials, PullQuery(start=run["window_start"], end=run["window_end"], offset=offset)
            )
            if page.rows == 0:
                return
            zone = await self._line_matching.zone_of(run["env"], run["shortcode"])
            is_new = await self._store_lines(run, page, zone, is_till=credentials.kind == "till") > 0
            # Now: the next page may fail.
            await self._line_matching.match_page(run, page.lines)
            if page.rows < _PAGE_ROWS or (not is_new and page.malformed < page.rows):
                return
            # An unreadable page may be one of many, or the same one repeated.
            unreadable = 0 if is_new else unreadable + 1
            if unreadable == _MOST_UNREADABLE:
                break
            offset += page.rows
            await asyncio.sleep(self._settings.page_pause)
        raise OutcomeUnknown("M-Pesa's statement cannot be read to its end")

    async def _ask(self, credentials: MpesaCredentials, question: PullQuery) -> StatementPage:
        for tried in range(1, self._settings.tries + 1):
            try:
                return await self._runtime.daraja.call(PULL_QUERY, credentials.daraja, question)
            except Rejected:
                raise
            except DarajaFault as fault:
                if tried == self._settings.tries:
                    raise
                await asyncio.sleep(min(fault.retry_after or self._settings.pause, self._settings.pause) * tried)
        raise AssertionError("unreachable")

    async def _store_lines(self, run: Row, page: StatementPage, zone: Zone | None, *, is_till: bool) -> int:
        now = self._runtime.clock.now()
        times = [possible_times_of(line, run, zone, now) for line in page.lines]
        seen = [
            reported_transaction(run, line, moments[0]) for line, (moments, _) in zip(page.lines, times, strict=True)
        ]
        # One line of each page is kept as proof of the time zone, even of a known one.
        first = next((line.receipt for line in page.lines if len(line.moments) > 1), None)
        async with self._db.transaction():
            read: dict[Any, Any] = {
                RunRow.pages: RunRow.pages + 1,
                RunRow.malformed: RunRow.malformed + page.malformed,
                RunRow.lease_until: now + _LEASE,
            }
            is_ours = await self._db.run(
                RunRow.update(read)
                .where(RunRow.run_id == run["run_id"], RunRow.status == "running")
                .returning(RunRow.run_id)
            )
            if not is_ours:
                raise RunLost("the lease of the run has expired")
            recorded = await self._transactions.record(seen)
            values = [
                _line_columns(run, line, reported, known, proves=zone is None or line.receipt == first)
                | {"likely": moments[0], "other": moments[1] if len(moments) > 1 else None, "is_timed": is_timed}
                for line, (moments, is_timed), reported, known in zip(page.lines, times, seen, recorded, strict=True)
                if known is not None
            ]
            rows = await self._db.fetch(
                *tables.STORE_LINES.bind_rows(
                    values,
                    merchant_id=run["merchant_id"],
                    env=run["env"],
                    created_at=now,
                    run_id=run["run_id"],
                    is_of_till=is_till,
                )
            )
        return len(rows)


def _line_columns(
    run: Row, line: StatementLine, seen: ReportedTransaction, known: RecordedTransaction, *, proves: bool
) -> dict[str, Any]:
    """``proves``: the line of a payment may prove the time zone and is not explained at once."""
    subject = known.subject
    is_allocated = subject is not None and seen.direction == "in"
    is_paid = is_allocated and subject is not None and subject.kind == "payment"
    is_same = seen.amount_cents is not None and seen.amount_cents == known.amount_cents
    is_explained = is_allocated and is_same and not (is_paid and proves and len(line.moments) > 1)
    is_own = known.merchant_id == run["merchant_id"]
    return {
        "transaction_id": known.transaction_id,
        "amount": _column_amount(line.amount),
        "amount_text": line.amount_text,
        "is_explained": is_explained,
        "is_paid": is_paid,
        "finding": "already_known" if is_own else "not_found",
    }


def _column_amount(amount: Kes | None) -> int | None:
    """Amounts outside the column's range belong to no payment."""
    return int(amount) if amount is not None and int(amount) < 2**31 else None
