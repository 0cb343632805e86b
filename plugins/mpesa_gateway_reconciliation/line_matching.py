"""Judges statement lines and stores their findings."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import DarajaClient, DarajaFault
from mpesa_gateway.daraja.wire import StatementLine, read_payer
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.errors import NotFound, ProviderNotConfigured, require_found
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_payments.api import (
    CLOCKS_DIFFER,
    SHOWN_FOR,
    TRANSACTION_STATUS,
    AlreadyKnown,
    Ambiguous,
    Direction,
    Evidence,
    Finding,
    Lock,
    Mismatch,
    NeedsQuery,
    NotAssignable,
    PaidBy,
    Payments,
    Proof,
    Receiver,
    Settled,
    StatementMatching,
    TransactionStatus,
    Verdict,
    Zone,
    in_zone,
    possible_times,
    proven_zone,
    read_direction,
    transaction_state,
)
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_reconciliation import matching_queries, tables
from mpesa_gateway_reconciliation.errors import LineSettled
from mpesa_gateway_reconciliation.line_evidence import (
    answered_transaction,
    evidence_of,
    is_of_unknown_direction,
    named_receipts,
    zone_of,
)
from mpesa_gateway_reconciliation.matching import Decided, require_confirmation
from mpesa_gateway_reconciliation.tables import NoteRow
from mpesa_gateway_transactions.api import Transactions

log = structlog.get_logger(__name__)

_ASK_AGAIN = timedelta(hours=1)
"""Time until an unanswered query is repeated."""

_SETTLED = frozenset({"already_known", "recovered", "mismatched"})
"""Findings that link a line to a payment."""

_NOT_ASSIGNABLE: Mapping[str, str] = {
    "not_ours": "this line is not of money received by this shortcode",
    "receiver": "this line is of another env or shortcode than that payment",
    "paid": "this payment has another receipt: it was paid with other money",
    "another": "this line's receipt or reference names another payment",
    "merchant": "a payment of another merchant of this shortcode fits this line as well: an operator has to decide",
    "differs": "this line does not fit that payment (amount, payer, reference or time differ): an operator can decide",
}
"""Reasons why a line cannot be assigned to the chosen payment."""


_ALLOCATED = "this money is allocated already: its transaction states what it is for"


class _LineSettledConcurrently(Exception):
    """The line was assigned or set aside concurrently."""


class LineMatching:
    """Matches statement lines to payments. Every transaction locks a payment before its money."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        audit: Audit,
        daraja: DarajaClient,
        trace_links: TraceLinks,
        callbacks: Callbacks,
        credentials: Credentials,
        payments: Payments,
        statement_matching: StatementMatching,
        transactions: Transactions,
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._daraja = daraja
        self._trace_links = trace_links
        self._callbacks = callbacks
        self._credentials = credentials
        self._payments = payments
        self._statement_matching = statement_matching
        self._transactions = transactions

    async def zone_of(self, env: str, shortcode: str) -> Zone | None:
        """Return the time zone that the shortcode's latest matched lines prove."""
        return await zone_of(self._db, env, shortcode)

    async def match_page(self, run: Row, lines: Sequence[StatementLine]) -> None:
        """Match the lines of a page that name their payment by receipt or reference."""
        rows = await self._db.fetch(tables.UNSETTLED_OF_PAGE, run["run_id"], [line.receipt for line in lines])
        reports = [evidence_of(row, Proof.PAGE) for row in rows]
        verdicts = await self._statement_matching.judge(reports)
        readings = {line.receipt: line.moments for line in lines}
        named = [
            (row, report)
            for row, report, verdict in zip(rows, reports, verdicts, strict=True)
            if isinstance(verdict, PaidBy | AlreadyKnown | Mismatch)
        ]
        for row, report in named:
            settled = await self._match_line(row, report, run)
            await self._learn_zone(row, readings[row["receipt"]], settled)

    async def match_window(self, run: Row, credentials: MpesaCredentials) -> None:
        """Match the lines of a run that was read to its end."""
        self._db.refuse_transaction("matching a statement")
        after = ""
        while rows := await self._db.fetch(tables.UNSETTLED, run["run_id"], after):
            zone = await self.zone_of(run["env"], run["shortcode"])
            asked = await self._match_lines(rows, [evidence_of(row, Proof.WINDOW, zone) for row in rows], run)
            for row in asked:
                await self._query_line(row, credentials)
            after = rows[-1]["line_id"]
        await self._match_reversals(run)

    async def _match_reversals(self, run: Row) -> None:
        after = ""
        while rows := await self._db.fetch(tables.REVERSALS_OF_RUN, run["run_id"], after):
            for row in rows:
                receipts = named_receipts(row)
                if receipts:
                    await self._write(
                        row, run, partial(self._statement_matching.withdraw, evidence_of(row, Proof.WINDOW), receipts)
                    )
            after = rows[-1]["line_id"]

    async def _match_lines(self, rows: Sequence[Row], reports: Sequence[Evidence], run: Row | None) -> list[Row]:
        verdicts = await self._statement_matching.judge(reports)
        unmatched: dict[Finding, list[Row]] = {"not_found": [], "ambiguous": []}
        asked: list[Row] = []
        for row, report, verdict in zip(rows, reports, verdicts, strict=True):
            if isinstance(verdict, PaidBy | AlreadyKnown | Mismatch):
                settled = await self._match_line(row, report, run)
                if settled.asks:
                    asked.append(row)
            else:
                unmatched[_unmatched_finding(verdict)].append(row)
                if isinstance(verdict, NeedsQuery):
                    asked.append(row)
        for finding, found in unmatched.items():
            await self._found(found, finding, run)
        return asked

    async def _found(self, rows: Sequence[Row], finding: Finding, run: Row | None) -> None:
        """Lines that a person has decided keep their finding."""
        if rows:
            run_id = None if run is None else run["run_id"]
            await self._db.fetch(matching_queries.STORE_FINDINGS, [row["line_id"] for row in rows], finding, run_id)

    async def _match_line(self, row: Row, report: Evidence, run: Row | None) -> Settled:
        return await self._write(row, run, partial(self._statement_matching.apply, report))

    async def _write(self, row: Row, run: Row | None, settle: Callable[[Lock], Awaitable[Settled]]) -> Settled:
        async def lock() -> None:
            _require_open(await self._db.fetchrow(matching_queries.LOCK_NOTE, row["line_id"]))

        settled = Settled("already_known")
        try:
            async with self._db.transaction():
                settled = await settle(lock)
                if settled.payment_id is None:
                    await lock()
                is_settled = settled.finding in _SETTLED
                payment_id, owner = (settled.payment_id, settled.merchant_id) if is_settled else (None, None)
                now = self._clock.now()
                await self._db.fetch(
                    matching_queries.STORE_FINDING, row["line_id"], settled.finding, payment_id, now, owner
                )
                if run is not None:
                    # Another merchant's payment is not shown.
                    is_shown = owner in {None, run["merchant_id"]}
                    await self._found_in_run(run, row["line_id"], settled.finding if is_shown else "not_found")
        except _LineSettledConcurrently:
            if run is not None:
                await self._found_in_run(run, row["line_id"], "already_known")
        return settled

    async def _learn_zone(self, row: Row, readings: tuple[datetime, ...], settled: Settled) -> None:
        if len(readings) != 2 or settled.payment_id is None or settled.finding == "mismatched":
            return
        payment = await self._payments.find(settled.payment_id)
        if payment is None or payment.completed_at is None:
            return
        zone = proven_zone(readings, payment.created_at, payment.completed_at)
        if zone is not None:
            proof: dict[Any, Any] = {NoteRow.zone: zone, NoteRow.moments: list(in_zone(readings, zone))}
            await self._note(row["line_id"], proof)

    async def _note(self, line_id: str, values: dict[Any, Any]) -> None:
        await self._db.run(NoteRow.update(values).where(NoteRow.transaction_id == line_id))

    async def _found_in_run(self, run: Row, line_id: str, finding: str) -> None:
        await self._db.execute(matching_queries.STORE_RUN_FINDING, run["run_id"], line_id, finding)

    async def _query_line(self, row: Row, credentials: MpesaCredentials) -> None:
        """The answer shows the payer's whole number and the time."""
        now = self._clock.now()
        if row["asked_at"] is not None and now - row["asked_at"] < _ASK_AGAIN:
            return
        callbacks = self._callbacks

        def address(kind: str) -> str:
            return callbacks.url_for(
                kind, env=credentials.env, merchant_id=row["merchant_id"], subject_id=row["line_id"]
            )

        try:
            # First: the answer may arrive before the acknowledgement.
            initiator = credentials.initiator_for("a status query about a statement line")
            await self._note(row["line_id"], {NoteRow.asked_at: now})
            self._trace_links.begin(row["line_id"])
            question = TransactionStatus(
                initiator=initiator,
                receipt=row["receipt"],
                conversation_id=None,
                result_url=address("status"),
                timeout_url=address("status-timeout"),
                remarks=f"status of {row['receipt']}",
            )
            await self._daraja.call(TRANSACTION_STATUS, credentials.daraja, question)
        except ProviderNotConfigured as problem:
            log.info("ambiguous_line_not_queried", line_id=row["line_id"], problem=problem.message)
        except DarajaFault as fault:
            log.info("ambiguous_line_not_queried", line_id=row["line_id"], problem=fault.meaning)
            await self._note(row["line_id"], {NoteRow.asked_at: row["asked_at"]})

    async def apply_status(self, result: StatusResulted) -> None:
        """Apply the answer to a query about a line, in the transaction that stores the callback.

        The line is judged after commit: a payment is never locked after a line.
        """
        if not result.subject_id.startswith("txn_"):
            return
        asked = await self._db.fetchrow(tables.FIND_LINE, result.subject_id)
        if asked is None:
            return
        is_answer = result.is_final and not result.timed_out and result.result_code == "0"
        if is_answer and asked["finding"] == "ambiguous" and result.receipt in {None, asked["receipt"]}:
            state = transaction_state(result.transaction_status)
            if _agrees(asked, result):
                await self._learn(asked, result)
            elif state in {"reversed", "partially_reversed"} and _is_of_line(asked, result):
                receiver = Receiver(asked["env"], asked["shortcode"])
                await self._statement_matching.record_reversed(receiver, asked["receipt"], state)
            else:
                log.error("status_answer_of_other_money", line_id=asked["line_id"], says=result.transaction_status)
                await self._db.execute(
                    matching_queries.STORE_ANSWER, asked["line_id"], None, None, result.received_at, None
                )

            async def decide() -> None:
                await self._decide_like(asked)

            await self._db.after_commit(decide)
        await self._callbacks.mark_applied(result.callback_id)

    async def _learn(self, line: Row, result: StatusResulted) -> None:
        # The statement proves the receiver: a former store number is its own too.
        numbers = {line["shortcode"], *await self._credentials.stores_of(line["env"], line["shortcode"])}
        direction = read_direction(result.payees, numbers, debtors=result.payers, amount=result.amount_text)
        moments = () if result.finished_at is None else possible_times((result.finished_at,), now=result.received_at)
        await self._db.execute(
            matching_queries.STORE_ANSWER,
            line["line_id"],
            read_payer(result.payers),
            list(moments) or None,
            result.received_at,
            None if direction is None else direction is Direction.IN,
        )
        if direction is Direction.IN and is_of_unknown_direction(line):
            await self._transactions.defer([answered_transaction(line)])

    async def _decide_like(self, asked: Row) -> None:
        """The payer's number may decide similar lines too, if the queried line fits their payments."""
        rows = await self._db.fetch(
            matching_queries.OPEN_LIKE,
            asked["env"],
            asked["shortcode"],
            asked["amount"],
            asked["line_id"],
            asked["merchant_id"],
            min(asked["moments"]) - SHOWN_FOR,
        )
        zone = await self.zone_of(asked["env"], asked["shortcode"])
        # M-Pesa has been queried about all of them.
        await self._match_lines(rows, [evidence_of(row, Proof.ANSWER, zone) for row in rows], None)

    async def assign(self, caller: Caller, line_id: str, payment_id: str, *, by_operator: Decided | None = None) -> Row:
        """Assign a line to a payment.

        Raises NotFound, and LineSettled with the reason. A merchant's choice must fit the line, and no other merchant's
        payment may fit. An operator must confirm an amount that differs: raises InvalidFields otherwise.
        """
        payment = await self._payments.get(caller.merchant_id, caller.env, payment_id)
        found = require_found(
            await self._db.fetchrow(tables.FIND_LINE_OF, caller.merchant_id, caller.env, line_id),
            "there is no such statement line",
        )
        if found["payment_id"] is not None:
            raise LineSettled("this line belongs to a payment already")
        if found["finding"] == "already_known":
            raise LineSettled(_ALLOCATED)
        if by_operator is not None:
            require_confirmation(found, payment, by_operator)
        report = evidence_of(found, Proof.WINDOW, await self.zone_of(found["env"], found["shortcode"]))

        async def lock() -> None:
            note = await self._db.fetchrow(matching_queries.LOCK_NOTE, line_id)
            if note is None or note["payment_id"] is not None:
                raise LineSettled("this line belongs to a payment already")
            if _is_for_something_else(note):
                raise LineSettled(_ALLOCATED)

        async with self._db.transaction():
            settled = await self._statement_matching.assign(
                report, payment_id, lock, by_operator=by_operator is not None
            )
            if isinstance(settled, NotAssignable):
                raise LineSettled(_NOT_ASSIGNABLE[settled.reason])
            now, owner = self._clock.now(), settled.merchant_id
            await self._db.fetch(matching_queries.STORE_FINDING, line_id, settled.finding, payment_id, now, owner)
            assigned = await self._db.fetchrow(tables.FIND_LINE, line_id)
            # Last: the audit log is locked after all other rows.
            detail = {"payment_id": payment_id, "finding": settled.finding}
            await self._audit.record(
                "statement_line.assigned",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=line_id,
                env=caller.env,
                detail=detail | ({} if by_operator is None else {"reason": by_operator.reason[:500]}),
            )
        if assigned is None:
            raise NotFound("there is no such statement line")
        return assigned

    async def candidates(self, line: Row) -> tuple[str, ...]:
        report = evidence_of(line, Proof.WINDOW, await self.zone_of(line["env"], line["shortcode"]))
        (verdict,) = await self._statement_matching.judge([report])
        if isinstance(verdict, PaidBy | AlreadyKnown | Mismatch):
            return (verdict.payment_id,)
        return verdict.payment_ids if isinstance(verdict, NeedsQuery | Ambiguous) else ()


def _agrees(line: Row, result: StatusResulted) -> bool:
    return transaction_state(result.transaction_status) == "completed" and _is_of_line(line, result)


def _is_of_line(line: Row, result: StatusResulted) -> bool:
    if result.amount_text is not None and result.amount != line["amount"]:
        return False
    at = result.finished_at
    return at is None or any(abs(at - moment) <= CLOCKS_DIFFER for moment in line["moments"])


def _require_open(line: Row | None) -> None:
    if line is None or line["payment_id"] is not None or line["set_aside_at"] is not None:
        raise _LineSettledConcurrently
    if _is_for_something_else(line):
        raise _LineSettledConcurrently


def _is_for_something_else(line: Row) -> bool:
    """The money came in for an account number, or is marked as dealt with: it completes no payment."""
    return line["direction"] == "in" and line["subject_kind"] not in {None, "payment"}


def _unmatched_finding(verdict: Verdict) -> Finding:
    return "ambiguous" if isinstance(verdict, NeedsQuery | Ambiguous) else "not_found"
