"""Rows that evidence is judged against, and writes of the verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.errors import require_found
from mpesa_gateway.money import MAXIMUM, Kes
from mpesa_gateway_payments import matching, statement_matching_sql, tables
from mpesa_gateway_payments.api import Finding, Lock, Settled, UnallocatedMoney, WantedMoney, lock_nothing
from mpesa_gateway_payments.decisions import MatchedMoney, result_of
from mpesa_gateway_payments.evidence import (
    CLOCKS_DIFFER,
    Direction,
    Evidence,
    Proof,
    Receiver,
    Source,
    normalised,
    read_unsigned,
    reported_money,
)
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.matching import SHOWN_FOR, judge_choice, may_own, with_part_of_statement
from mpesa_gateway_payments.result_codes import TransactionState
from mpesa_gateway_payments.states import Cause
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.verdicts import (
    AlreadyKnown,
    Ambiguous,
    Mismatch,
    NeedsQuery,
    NotAssignable,
    NotFound,
    PaidBy,
    Payment,
    Rules,
    Transaction,
    Verdict,
    payment_of,
)
from mpesa_gateway_transactions.api import ReportedReversal

_FINDINGS: dict[str, Finding] = {"completed": "recovered", "known": "already_known", "mismatched": "mismatched"}

_CAUSES = {Source.STATEMENT: Cause.STATEMENT, Source.C2B: Cause.C2B}

_TEXTS = {Source.STATEMENT: "found on M-Pesa's statement", Source.C2B: "confirmed by M-Pesa as a C2B payment"}

_Group = tuple[str, str, int]
"""Env, receiver and amount."""

_Receipt = tuple[str, str, str]
"""Env, receiver and receipt."""


@dataclass
class _Facts:
    named: dict[str, Payment] = field(default_factory=dict[str, Payment])
    candidates: dict[_Group, list[Payment]] = field(default_factory=dict[_Group, list[Payment]])
    unallocated: dict[_Group, list[Transaction]] = field(default_factory=dict[_Group, list[Transaction]])
    outgoing: dict[_Receipt, Transaction] = field(default_factory=dict[_Receipt, Transaction])
    allocated: set[_Receipt] = field(default_factory=set[_Receipt])
    references: dict[_Receipt, str] = field(default_factory=dict[_Receipt, str])
    cut: set[_Group] = field(default_factory=set[_Group])

    def judge(self, report: Evidence, rules: Rules) -> Verdict:
        verdict = matching.judge(self.whole(report), self.payments(report), self.transactions(report), rules)
        is_by_rule = isinstance(verdict, PaidBy) and verdict.by == "rule"
        # Money of another subject is a witness only.
        return NotFound() if is_by_rule and _receipt_of(report) in self.allocated else verdict

    def whole(self, report: Evidence) -> Evidence:
        """Incomplete if the limit on candidates was reached.

        Status answers never show the reference: M-Pesa's other report of the receipt does.
        """
        key = _receipt_of(report)
        if report.source is Source.STATUS_QUERY and key in self.references:
            report = replace(report, reference=self.references[key])
        return with_part_of_statement(report) if _group(report) in self.cut else report

    def payments(self, report: Evidence) -> list[Payment]:
        found = {one.payment_id: one for one in self.candidates.get(_group(report) or ("", "", 0), ())}
        reference = normalised(report.reference)
        env = None if report.receiver is None else report.receiver.env
        for one in self.named.values():
            has_receipt = report.receipt is not None and report.receipt in {one.receipt, one.received_receipt}
            has_reference = one.reference_is_ours and normalised(one.reference) == reference
            is_pushed = report.handle is not None and report.handle.payment_id == one.payment_id
            if (has_receipt or has_reference or is_pushed) and env in {None, one.env}:
                found[one.payment_id] = one
        return list(found.values())

    def transactions(self, report: Evidence) -> list[Transaction]:
        group = _group(report)
        found = [] if group is None else list(self.unallocated.get(group, ()))
        key = _receipt_of(report)
        own = None if key is None else self.outgoing.get(key)
        return found if own is None else [*found, own]

    def replace(self, payment: Payment) -> None:
        self.named[payment.payment_id] = payment
        for group, payments in self.candidates.items():
            self.candidates[group] = [payment if one.payment_id == payment.payment_id else one for one in payments]


class PaymentStatementMatching:
    """The port through which reconciliation and status queries complete payments."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        rules: Rules,
        transitions: Transitions,
        external_reversals: ExternalReversals,
        unallocated: UnallocatedMoney | None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._rules = rules
        self._transitions = transitions
        self._external_reversals = external_reversals
        self._unallocated = unallocated

    async def judge(self, reports: Sequence[Evidence]) -> list[Verdict]:
        facts = await self._facts(reports)
        return [facts.judge(report, self._rules) for report in reports]

    async def apply(self, report: Evidence, lock: Lock = lock_nothing) -> Settled:
        return await self._apply(report, lock, by_rule=True)

    async def possible_owners(self, report: Evidence) -> list[Payment]:
        """Return payments without a receipt, of all merchants, that may own the money."""
        facts = await self._facts([report])
        return [one for one in facts.payments(report) if may_own(report, one)]

    async def apply_named(self, report: Evidence) -> Settled:
        """Like ``apply``, but a payment found by the matching rule is ambiguous."""
        return await self._apply(report, lock_nothing, by_rule=False)

    async def allocate(self, report: Evidence, *, by_rule: bool) -> Settled:
        """Like ``apply`` or ``apply_named``, for a caller that notes and publishes the allocation."""
        return await self._apply(report, lock_nothing, by_rule=by_rule, is_noted=True)

    async def _apply(self, report: Evidence, lock: Lock, *, by_rule: bool, is_noted: bool = False) -> Settled:
        facts = await self._facts([report])
        verdict = facts.judge(report, self._rules)
        if not isinstance(verdict, PaidBy | AlreadyKnown | Mismatch):
            return _unsettled(verdict)
        if isinstance(verdict, PaidBy) and verdict.by == "rule" and not by_rule:
            return _unsettled(verdict)
        row = await self._lock(verdict.payment_id, facts)
        # The row may have changed before the lock.
        verdict = facts.judge(report, self._rules)
        if not isinstance(verdict, PaidBy | AlreadyKnown | Mismatch) or verdict.payment_id != row["payment_id"]:
            return _unsettled(verdict)
        await lock()
        return await self._write(row, report, verdict, is_noted=is_noted)

    async def withdraw(self, report: Evidence, receipts: Sequence[str], lock: Lock = lock_nothing) -> Settled:
        receiver = report.receiver
        if receiver is None or report.receipt is None:
            return Settled("not_found")
        found = await self._db.fetchrow(
            statement_matching_sql.PAID_AT, receiver.env, receiver.number, sorted(set(receipts))
        )
        row = None if found is None else await self._db.fetchrow(tables.LOCK, [found["payment_id"]])
        returned = report.amount if isinstance(report.amount, Kes) else read_unsigned(report.amount)
        if row is None:
            await self._external_reversals.reverse_loose(
                ReportedReversal(
                    env=receiver.env,
                    number=receiver.number,
                    receipts=tuple(sorted(set(receipts))),
                    amount_cents=None if returned is None else int(returned) * 100,
                    reversal_receipt=report.receipt,
                ),
                lock,
            )
            return Settled("not_found")
        await lock()
        settled = Settled("already_known", row["payment_id"], row["merchant_id"])
        known = await self._db.fetch(statement_matching_sql.KNOWN_RECEIPTS, receiver.env, [report.receipt])
        if any(one["number"] == receiver.number and one["pays_nothing"] for one in known):
            # A refund of ours.
            return settled
        is_whole = returned == row["amount"]
        is_new = await self._external_reversals.apply(
            row,
            "reversed" if is_whole else "partially_reversed",
            Cause.STATEMENT,
            "found on M-Pesa's statement",
            None if report.receipt == row["receipt"] else report.receipt,
        )
        return settled if is_new or row["reversed_outside"] is not None else Settled("not_found")

    async def record_reversed(self, receiver: Receiver, receipt: str, state: TransactionState) -> None:
        await self._external_reversals.record(receiver, receipt, state)

    async def assign(
        self,
        report: Evidence,
        payment_id: str,
        lock: Lock = lock_nothing,
        *,
        by_operator: bool = False,
        is_noted: bool = False,
    ) -> Settled | NotAssignable:
        facts = await self._facts([report])
        row = await self._lock(payment_id, facts)
        verdict = judge_choice(
            facts.whole(report),
            payment_of(row),
            facts.payments(report),
            facts.transactions(report),
            self._rules,
            by_operator=by_operator,
        )
        if isinstance(verdict, NotAssignable):
            return verdict
        await lock()
        return await self._write(row, report, verdict, is_noted=is_noted)

    async def _write(self, row: Row, report: Evidence, verdict: Verdict, *, is_noted: bool) -> Settled:
        # A status answer completed the line.
        source = Source.STATUS_QUERY if report.proof is Proof.ANSWER else report.source
        cause = _CAUSES.get(source, Cause.STATUS_QUERY)
        text = _TEXTS.get(report.source, "M-Pesa reports Completed")
        money = MatchedMoney(verdict, reported_money(report, text=text), cause)
        decisions = await self._transitions.apply(row, money, is_noted=is_noted)
        return Settled(_FINDINGS[result_of(decisions)], row["payment_id"], row["merchant_id"])

    async def _lock(self, payment_id: str, facts: _Facts) -> Row:
        row = require_found(await self._db.fetchrow(tables.LOCK, [payment_id]), "there is no such payment")
        facts.replace(payment_of(row))
        return row

    async def _facts(self, reports: Sequence[Evidence]) -> _Facts:
        facts = _Facts()
        for env in sorted({report.receiver.env for report in reports if report.receiver is not None}):
            ours = [report for report in reports if report.receiver is not None and report.receiver.env == env]
            await self._fetch_named(facts, env, ours)
            await self._fetch_candidates(facts, env, ours)
        pushed = [report.handle.payment_id for report in reports if report.handle and report.handle.payment_id]
        if pushed:
            self._note(facts, await self._db.fetch(tables.READ, pushed))
        return facts

    async def _fetch_named(self, facts: _Facts, env: str, reports: Sequence[Evidence]) -> None:
        receipts = sorted({report.receipt for report in reports if report.receipt})
        references = sorted({key for report in reports if (key := (normalised(report.reference) or "").upper())})
        self._note(facts, await self._db.fetch(statement_matching_sql.NAMED, env, receipts, references))
        for row in await self._db.fetch(statement_matching_sql.KNOWN_RECEIPTS, env, receipts):
            place = env, row["number"], row["receipt"]
            if row["pays_nothing"]:
                facts.outgoing[place] = Transaction(receipt=row["receipt"], direction=Direction.OUT)
            if row["is_allocated"]:
                facts.allocated.add(place)
            if row["reference"] is not None:
                facts.references[place] = row["reference"]

    async def _fetch_candidates(self, facts: _Facts, env: str, reports: Sequence[Evidence]) -> None:
        wanted = self._wanted(reports)
        if not wanted:
            return
        rows = await self._db.fetch(
            statement_matching_sql.CANDIDATES,
            env,
            [one.number for one in wanted],
            [one.amount for one in wanted],
            [one.since for one in wanted],
            [one.likely for one in wanted],
            [one.until for one in wanted],
        )
        for row in rows:
            group = env, row["shortcode"], row["amount"]
            facts.candidates.setdefault(group, []).append(payment_of(row))
        asked = [one for one in wanted if (env, one.number, one.amount) in facts.candidates]
        for one in asked:
            found = facts.candidates[env, one.number, one.amount]
            if len(found) >= statement_matching_sql.MOST_CANDIDATES and found[-1].created_at >= one.likely:
                facts.cut.add((env, one.number, one.amount))
        if asked and self._unallocated is not None:
            await self._note_unallocated(facts, env, await self._unallocated.find(env, asked))

    async def _note_unallocated(self, facts: _Facts, env: str, money: Sequence[Transaction]) -> None:
        receipts = sorted({one.receipt for one in money})
        # Another merchant of the receiver may have its payment.
        rows = await self._db.fetch(statement_matching_sql.RECEIPTS_KNOWN, env, receipts) if receipts else []
        known = {row["receipt"] for row in rows}
        for one in money:
            if one.receipt not in known and one.receiver is not None and one.amount is not None:
                facts.unallocated.setdefault((env, one.receiver.number, one.amount), []).append(one)

    def _wanted(self, reports: Sequence[Evidence]) -> list[WantedMoney]:
        now, within = self._clock.now(), self._rules.match_within
        times: dict[_Group, list[datetime]] = {}
        for report in reports:
            group = _group(report)
            if group is not None and group[2] <= MAXIMUM:
                times.setdefault(group, []).extend(report.time or (now,))
        return [
            WantedMoney(
                number=group[1],
                amount=group[2],
                since=min(at) - SHOWN_FOR,
                likely=min(at) - within,
                until=max(at) + CLOCKS_DIFFER,
            )
            for group, at in sorted(times.items())
        ]

    def _note(self, facts: _Facts, rows: Sequence[Row]) -> None:
        for row in rows:
            facts.named[row["payment_id"]] = payment_of(row)


def _group(report: Evidence) -> _Group | None:
    if report.receiver is None or not isinstance(report.amount, Kes):
        return None
    return report.receiver.env, report.receiver.number, int(report.amount)


def _receipt_of(report: Evidence) -> _Receipt | None:
    if report.receiver is None or report.receipt is None:
        return None
    return report.receiver.env, report.receiver.number, report.receipt


def _unsettled(verdict: Verdict) -> Settled:
    if isinstance(verdict, NeedsQuery | Ambiguous | PaidBy | AlreadyKnown | Mismatch):
        ids = verdict.payment_ids if isinstance(verdict, NeedsQuery | Ambiguous) else (verdict.payment_id,)
        return Settled("ambiguous", candidates=ids, asks=isinstance(verdict, NeedsQuery))
    return Settled("not_found")
