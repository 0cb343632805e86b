"""Counts money to account numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.deferred import ConcurrentUpdate, DeferredWrite
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.ids import Ids
from mpesa_gateway.money import Kes, cents_text, payable
from mpesa_gateway_c2b import account_tables
from mpesa_gateway_c2b.account_states import AccountState, as_cents, crossed, normalise
from mpesa_gateway_c2b.account_tables import AccountNumberRow
from mpesa_gateway_c2b.events import AccountEvent, AccountOverpaid, AccountPaid, AccountPartPaid
from mpesa_gateway_c2b.push_money import (
    CLOCKS_DIFFER,
    HELD,
    HELD_FOR_USERS,
    PUSH,
    RECENT_PUSH,
    is_held,
    is_left_to_user,
    is_like,
    is_of_another,
    latest_push,
)
from mpesa_gateway_payments.events import PaymentCompleted, PaymentReversed
from mpesa_gateway_transactions.api import Allocated, FoundSubject, IncomingMoney, LeftToReport, RefundedMoney, Subject
from mpesa_gateway_transactions.events import TransactionReversed

SUBJECT_KIND = "account_number"

_EVENTS: Mapping[AccountState, type[AccountEvent]] = {
    "part_paid": AccountPartPaid,
    "paid": AccountPaid,
    "overpaid": AccountOverpaid,
}


@dataclass(frozen=True)
class Entry:
    """Money from a transaction, a payment or (negative) a refund."""

    source_id: str
    account_id: str
    amount_cents: int


class AccountCounting:
    """Adds entries, each source once, and publishes the crossings. Needs an open transaction.

    Account numbers are locked after transactions, in the order of their ids.
    """

    def __init__(self, *, db: Database, clock: Clock, outbox: Outbox) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox
        self._users = set[str]()
        """Merchants that requested payments with account numbers."""

    async def find(self, money: Sequence[IncomingMoney]) -> list[FoundSubject | LeftToReport | None]:
        """Return the active account numbers that payers typed. No locks."""
        numbers = [normalise(one.account_number) for one in money]
        rows = await self._db.fetch(
            account_tables.OF_MONEY,
            [one.receiver_id for one in money],
            [one.owner_id or one.merchant_id for one in money],
            numbers,
            [one.receipt for one in money],
            [one.conflict_id for one in money],
        )
        found: list[FoundSubject | LeftToReport | None] = [None] * len(money)
        places: list[int] = [row["place"] - 1 for row in rows]
        candidates = [one for one in zip(rows, places, strict=True) if money[one[1]].amount_cents is not None]
        pushes = await self._pushes([(row, money[place], numbers[place]) for row, place in candidates])
        for (row, place), alike in zip(candidates, pushes, strict=True):
            if is_left_to_user(alike):
                found[place] = LeftToReport()
            elif not is_held(alike):
                found[place] = FoundSubject(Subject(SUBJECT_KIND, row["account_id"]), row["merchant_id"])
        return found

    async def _pushes(self, candidates: Sequence[tuple[Row, IncomingMoney, str]]) -> list[list[Row]]:
        """Return the payments that each money may be of."""
        if not candidates:
            return []
        now = self._clock.now()
        fresh_since = now - HELD
        payments = await self._db.fetch(
            account_tables.MAY_HAVE,
            [money.receiver_id for _, money, _ in candidates],
            [row["merchant_id"] for row, _, _ in candidates],
            [payable(money.amount_cents) for _, money, _ in candidates],
            [money.occurred_at - PUSH for _, money, _ in candidates],
            [self._until(money) for _, money, _ in candidates],
            [money.occurred_at > fresh_since for _, money, _ in candidates],
            [money.account_number for _, money, _ in candidates],
            [money.transaction_id for _, money, _ in candidates],
            [now - RECENT_PUSH if self._recorded(money) > now - HELD_FOR_USERS else now for _, money, _ in candidates],
        )
        return [
            [
                one
                for one in payments
                if one["place"] == place and is_like(one, number, money.payer_digest or money.payer)
            ]
            for place, (_, money, number) in enumerate(candidates, start=1)
        ]

    def _recorded(self, money: IncomingMoney) -> datetime:
        return self._clock.now() if money.transaction_id is None else Ids.time_of(money.transaction_id)

    def _until(self, money: IncomingMoney) -> datetime:
        """Return the latest creation of a push whose money this may be."""
        return latest_push(money.occurred_at, self._recorded(money) if money.source == "c2b" else None)

    async def count_allocated(self, allocated: Sequence[Allocated]) -> None:
        await self.add(
            [
                Entry(one.transaction_id, one.subject.subject_id, one.amount_cents)
                for one in allocated
                if one.amount_cents
            ],
            must_exist=True,
        )

    async def count_completed(self, completed: Sequence[PaymentCompleted]) -> None:
        """Count payments whose reference is an account number of their merchant at their receiver.

        A batch of callbacks costs no look-up: its write finds that no payment has an account number. Otherwise the
        transaction raises ConcurrentUpdate, and each callback is applied alone.
        """
        chosen = [one for one in completed if not one.has_own_reference]
        if self._db.is_deferring:
            await self._expect_none([one for one in chosen if one.merchant_id not in self._users])
            chosen = [one for one in chosen if one.merchant_id in self._users]
        if not chosen:
            return
        rows = await self._db.read_unlocked(
            account_tables.OF_PAYMENTS,
            [one.payment_id for one in chosen],
            [normalise(one.reference) for one in chosen],
        )
        found = {row["payment_id"] for row in rows}
        self._users |= {one.merchant_id for one in chosen if one.payment_id in found}
        counted = await self._counted_by_money([row for row in rows if row["receipt"] is None])
        await self.add(
            [
                Entry(row["payment_id"], row["account_id"], row["amount"] * 100)
                for row in rows
                if row["payment_id"] not in counted
            ]
        )

    async def _expect_none(self, completed: Sequence[PaymentCompleted]) -> None:
        if completed:
            args = (
                [one.merchant_id for one in completed],
                [one.env for one in completed],
                [one.shortcode for one in completed],
                [normalise(one.reference) for one in completed],
            )
            await self._db.defer(DeferredWrite(account_tables.OF_REFERENCES, args, expects=0))

    async def _counted_by_money(self, payments: Sequence[Row]) -> set[str]:
        """Return payments without receipt whose money counts already, by its transaction.

        Each transaction is the money of one payment.
        """
        if not payments:
            return set()
        rows = await self._db.read_unlocked(
            account_tables.ALREADY_COUNTED,
            [one["account_id"] for one in payments],
            [one["amount"] * 100 for one in payments],
            [one["created_at"] - CLOCKS_DIFFER for one in payments],
            [one["created_at"] + PUSH for one in payments],
            PUSH,
        )
        counted: dict[str, str] = {}
        for row in rows:
            place: int = row["place"] - 1
            payment = payments[place]
            is_free = row["source_id"] not in counted and payment["payment_id"] not in counted.values()
            if is_free and not is_of_another(payment, row["payer_digest"] or row["payer"]):
                counted[row["source_id"]] = payment["payment_id"]
        return set(counted.values())

    async def count_reversed(self, reversed_: Sequence[PaymentReversed]) -> None:
        """Subtract refunds of counted payments."""
        rows = await self._db.read_unlocked(account_tables.COUNTED, [one.payment_id for one in reversed_])
        counted = {row["source_id"]: row for row in rows}
        entries: list[Entry] = []
        for one in reversed_:
            row = counted.get(one.payment_id)
            if row is not None and one.refund_amount is not None:
                # A reversal outside the gateway has no refund; it takes the whole payment, once.
                source_id = one.refund_id or one.event_id
                entries.append(Entry(source_id, row["account_id"], -100 * int(Kes.parse(one.refund_amount))))
        await self.add(entries)

    async def count_refunded(self, money: RefundedMoney) -> None:
        """Subtract a refund of a transaction that counts to an account number."""
        if money.subject is not None:
            await self.add([Entry(money.refund_id, money.subject.subject_id, -money.refund_cents)])

    async def count_reversed_money(self, reversed_: Sequence[TransactionReversed]) -> None:
        """Subtract what M-Pesa returned outside the gateway; of an unknown part nothing."""
        entries: list[Entry] = []
        for one in reversed_:
            subject = one.allocated_to
            if subject is not None and subject["type"] == SUBJECT_KIND and one.refund_amount is not None:
                entries.append(Entry(one.event_id, subject["id"], -as_cents(one.refund_amount)))
        await self.add([one for one in entries if one.amount_cents])

    async def add(self, entries: Sequence[Entry], *, must_exist: bool = False) -> None:
        """An account number may have been deleted since it was found: skip it, or raise ConcurrentUpdate."""
        if not entries:
            return
        now = self._clock.now()
        accounts = sorted({one.account_id for one in entries})
        locked = {row["account_id"]: row for row in await self._db.fetch(account_tables.LOCK, accounts)}
        if must_exist and len(locked) < len(accounts):
            raise ConcurrentUpdate("the account number was deleted")
        entries = [*{one.source_id: one for one in entries if one.account_id in locked}.values()]
        added = await self._db.fetch(
            account_tables.ADD_ENTRIES,
            [one.source_id for one in entries],
            [one.account_id for one in entries],
            [one.amount_cents for one in entries],
            now,
        )
        new = {row["source_id"] for row in added}
        received = {account_id: row["received_cents"] for account_id, row in locked.items()}
        crossings: list[tuple[AccountState, str, int, int]] = []
        for one in entries:
            if one.source_id not in new:
                continue
            expected, before = locked[one.account_id]["expected_cents"], received[one.account_id]
            received[one.account_id] = before + one.amount_cents
            state = crossed(before, expected, before + one.amount_cents, expected)
            if state is not None:
                crossings.append((state, one.account_id, before + one.amount_cents, one.amount_cents))
        for account_id in locked:
            values: dict[Any, Any] = {
                AccountNumberRow.received_cents: received[account_id],
                AccountNumberRow.updated_at: now,
            }
            await self._db.run(AccountNumberRow.update(values).where(AccountNumberRow.account_id == account_id))
        await self.publish(crossings)

    async def publish(self, crossings: Sequence[tuple[AccountState, str, int, int | None]]) -> None:
        """Publish states, each with its account, the received sum, and the amount that caused it."""
        told = [one for one in crossings if one[0] in _EVENTS]
        if not told:
            return
        rows = await self._db.fetch(account_tables.BY_IDS, sorted({account_id for _, account_id, _, _ in told}))
        by_id = {row["account_id"]: row for row in rows}
        await self._outbox.publish(
            [_event(state, by_id[account_id], received, amount) for state, account_id, received, amount in told]
        )


def _event(state: AccountState, row: Row, received: int, amount: int | None) -> AccountEvent:
    expected = row["expected_cents"]
    return _EVENTS[state](
        merchant_id=row["merchant_id"],
        env=row["env"],
        subject_id=row["account_id"],
        account_id=row["account_id"],
        account_number=row["number"],
        shortcode=row["shortcode"],
        expected=cents_text(expected),
        received=cents_text(received),
        outstanding=cents_text(max(expected - received, 0)),
        amount=None if amount is None else cents_text(amount),
    )
