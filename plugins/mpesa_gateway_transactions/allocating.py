"""Recording of incoming money, with the rules that find its subject."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.transaction_types import read_transaction_type
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.announcing import Announcer
from mpesa_gateway_transactions.api import (
    Allocated,
    Assignment,
    FoundSubject,
    IncomingMoney,
    LeftToReport,
    RecordedTransaction,
    RefundedMoney,
    ReportedTransaction,
    Transactions,
)
from mpesa_gateway_transactions.tables import TransactionRow
from mpesa_gateway_transactions.views import Values


@dataclass(frozen=True)
class BoundRule:
    """A rule of one gateway."""

    name: str
    subject_kind: str
    find: Callable[[Sequence[IncomingMoney]], Awaitable[Sequence[FoundSubject | LeftToReport | None]]]
    allocated: Callable[[Sequence[Allocated]], Awaitable[None]] | None
    is_expected: Callable[[Sequence[IncomingMoney]], Awaitable[Sequence[bool]]] | None
    assign: Callable[[Assignment], Awaitable[FoundSubject]] | None
    refunded: Callable[[RefundedMoney], Awaitable[None]] | None = None
    claims: Callable[[IncomingMoney], Awaitable[FoundSubject | None]] | None = None


@dataclass(frozen=True)
class RuleFinding:
    """A subject with its rule."""

    found: FoundSubject
    by: str


class AllocationRules:
    """All rules in order."""

    def __init__(self, rules: Sequence[BoundRule]) -> None:
        self._rules = rules
        self.names = frozenset(rule.name for rule in rules)

    async def find(self, money: Sequence[IncomingMoney]) -> dict[str, RuleFinding]:
        """Return the subjects by ``money_key``."""
        found: dict[str, RuleFinding] = {}
        left = list(money)
        for rule in self._rules:
            if not left:
                break
            answers = await rule.find(left)
            for one, answer in zip(left, answers, strict=True):
                if isinstance(answer, FoundSubject):
                    found[money_key(one.env, one.receipt)] = RuleFinding(answer, rule.name)
            left = [one for one, answer in zip(left, answers, strict=True) if answer is None]
        return found

    async def expected(self, money: Sequence[IncomingMoney]) -> list[bool]:
        """Return True for money that may still find its subject by itself."""
        answers = [await rule.is_expected(money) for rule in self._rules if rule.is_expected is not None]
        return [any(each) for each in zip(*answers, strict=True)] if answers else [False] * len(money)

    async def claim(self, money: IncomingMoney) -> FoundSubject | None:
        for rule in self._rules:
            if rule.claims is not None and (found := await rule.claims(money)) is not None:
                return found
        return None

    async def assign(self, kind: str, choice: Assignment) -> FoundSubject:
        for rule in self._rules:
            if rule.subject_kind == kind and rule.assign is not None:
                return await rule.assign(choice)
        raise Conflict(f"no plugin is enabled that takes money for a {kind}")

    async def notify(self, allocated: Sequence[Allocated]) -> None:
        for rule in self._rules:
            theirs = [one for one in allocated if one.subject.kind == rule.subject_kind]
            if theirs and rule.allocated is not None:
                await rule.allocated(theirs)

    async def notify_refunded(self, money: RefundedMoney) -> None:
        for rule in self._rules:
            if money.subject is not None and money.subject.kind == rule.subject_kind and rule.refunded is not None:
                await rule.refunded(money)


class IncomingMoneyRecorder:
    """Implements Allocations."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        transactions: Transactions,
        rules: AllocationRules,
        announcer: Announcer,
    ) -> None:
        self._db = db
        self._clock = clock
        self._transactions = transactions
        self._rules = rules
        self._announcer = announcer

    async def receive(self, seen: Sequence[ReportedTransaction]) -> list[RecordedTransaction]:
        if not seen:
            return []
        known = await self._known(seen)
        found = await self._rules.find(
            [
                incoming_money(one, row)
                for one, row in zip(seen, known, strict=True)
                if _is_offered(one, row) and not row["is_refunded"]
            ]
        )
        reports = [
            one
            if (finding := found.get(money_key(one.env, one.receipt))) is None
            else replace(
                one,
                subject=finding.found.subject,
                merchant_id=finding.found.merchant_id,
                is_announced=row["announced_at"] is not None,
            )
            for one, row in zip(seen, known, strict=True)
        ]
        recorded: list[RecordedTransaction] = []
        for one in await self._transactions.record(reports):
            if one is None:
                raise ConcurrentUpdate("another transaction has allocated the money")
            recorded.append(one)
        await self.note(
            [
                _allocated(one, row, result, finding)
                for one, row, result in zip(reports, known, recorded, strict=True)
                if (finding := found.get(money_key(one.env, one.receipt))) is not None
            ]
        )
        await self._announce(
            [
                (result.transaction_id, incoming_money(one, row), row["announce_at"])
                for one, row, result in zip(reports, known, recorded, strict=True)
                if result.subject is None
                and _is_offered(one, row)
                and row["conflict_id"] is None
                and row["announced_at"] is None
            ]
        )
        return recorded

    async def _announce(self, left: Sequence[tuple[str, IncomingMoney, datetime | None]]) -> None:
        """Due money is announced, expected or not."""
        if not left:
            return
        now = self._clock.now()
        expected = await self._rules.expected([money for _, money, _ in left])
        await self._announcer.announce(
            [
                transaction_id
                for (transaction_id, _, due), is_held in zip(left, expected, strict=True)
                if not is_held or (due is not None and due <= now)
            ]
        )

    async def note(self, allocated: Sequence[Allocated], note: str | None = None) -> None:
        """Store and publish allocations; their transactions are locked and have the subjects."""
        if not allocated:
            return
        rows: list[dict[str, Any]] = [
            {
                "transaction_id": one.transaction_id,
                "subject_kind": one.subject.kind,
                "subject_id": one.subject.subject_id,
                "by": one.by,
                "note": note,
            }
            for one in sorted(allocated, key=lambda one: one.transaction_id)
        ]
        found = await self._db.fetch(*allocation_sql.NOTE.bind_rows(rows, at=self._clock.now()))
        noted = {row["transaction_id"] for row in found}
        new = [one for one in allocated if one.transaction_id in noted]
        await self._rules.notify(new)
        await self._announcer.publish_allocated([one.transaction_id for one in new], note)

    async def publish_learnt(self, env: Env, told: Mapping[str, str]) -> None:
        if not told:
            return
        rows: list[dict[str, Any]] = await self._db.run(
            TransactionRow.select(TransactionRow.transaction_id).where(
                TransactionRow.env == env,
                TransactionRow.direction == "in",
                TransactionRow.receipt.is_in(list(told)),
            )
        )
        await self._announcer.publish_allocated([row["transaction_id"] for row in rows], told=told)

    async def _known(self, seen: Sequence[ReportedTransaction]) -> list[Row]:
        rows = await self._db.fetch(
            allocation_sql.KNOWN,
            [one.env for one in seen],
            [one.number for one in seen],
            [one.direction for one in seen],
            [one.receipt for one in seen],
        )
        if len(rows) < len(seen):
            raise ValueError("a report names an unknown receiver")
        return rows


def money_key(env: str, receipt: str) -> str:
    return f"{env} {receipt}"


def _is_offered(one: ReportedTransaction, row: Row) -> bool:
    is_named = one.subject is not None or one.conflict_id is not None
    if one.direction != "in" or is_named or row["subject_id"] is not None:
        return False
    sources = {one.source, row["first_source"], *(row["witnesses"] or ())}
    if row["conflict_id"] is not None:
        # The push's report contradicts its payment: another one may settle it.
        sources.discard("stk")
    return is_shown_in(sources, row["money_kind"] or one.kind)


def is_shown_in(sources: Collection[str | None], kind: str | None) -> bool:
    """Return True if M-Pesa shows that the money came in.

    A line of the Pull Transactions API shows it by its transaction type alone. Of money of another type, a rule decides
    nothing and no event is published until M-Pesa reports it elsewhere: a person may allocate it.
    """
    return any(source not in {"pull", None} for source in sources) or read_transaction_type(kind)[0] == "in"


def incoming_money(one: ReportedTransaction, row: Values) -> IncomingMoney:
    is_known = row["transaction_id"] is not None
    return IncomingMoney(
        transaction_id=row["transaction_id"],
        source=one.source,
        env=one.env,
        receiver_id=row["receiver_id"],
        number=row["number"],
        is_till=row["kind"] == "till",
        owner_id=row["owner_id"],
        merchant_id=one.merchant_id,
        receipt=one.receipt,
        amount_cents=row["amount_cents"] if is_known and row["amount_cents"] is not None else one.amount_cents,
        occurred_at=row["occurred_at"] if is_known else one.occurred_at,
        account_number=row["account_number"] or one.account_number,
        payer=row["payer"] or one.payer,
        payer_digest=row["payer_digest"] or one.payer_digest,
        kind=row["money_kind"] or one.kind,
        conflict_id=row["conflict_id"],
    )


def _allocated(one: ReportedTransaction, row: Row, result: RecordedTransaction, finding: RuleFinding) -> Allocated:
    return Allocated(
        transaction_id=result.transaction_id,
        env=one.env,
        receiver_id=row["receiver_id"],
        merchant_id=result.merchant_id,
        receipt=one.receipt,
        amount_cents=result.amount_cents,
        subject=finding.found.subject,
        by=finding.by,
    )
