"""Use cases of account numbers."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions
from mpesa_gateway.errors import Conflict, InvalidFields, check_fields, require_found
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_c2b import account_tables
from mpesa_gateway_c2b.account_schemas import (
    MOST,
    AccountNumberInput,
    AccountQuery,
    AccountView,
    AccountWithEntries,
    Bounds,
    BulkInput,
    account_view,
    account_with_entries,
    read_bounds,
)
from mpesa_gateway_c2b.account_states import AccountState, crossed, normalise
from mpesa_gateway_c2b.account_tables import AccountNumberRow
from mpesa_gateway_c2b.counting import AccountCounting
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_transactions.api import Allocations, FoundSubject, IncomingMoney, ReportedTransaction

_SHOWN = 100
_LATE = timedelta(hours=48)
_PAGE = 200
_EACH = 200
"""Transactions that a run allocates for each merchant."""


class AccountNumbers:
    """Account numbers of a merchant's own receivers, by default of its default shortcode."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        audit: Audit,
        credentials: Credentials,
        counting: AccountCounting,
        allocations: Allocations,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._credentials = credentials
        self._counting = counting
        self._allocations = allocations

    async def put(self, caller: Caller, number: str, given: AccountNumberInput, shortcode: str | None) -> AccountView:
        """Create or replace an account number; the received sum stays. Raises InvalidFields and NotFound."""
        credentials = await self._own(caller, shortcode)
        with check_fields() as checks:
            bounds = read_bounds(checks, number, given)
        await self._store(caller, credentials, [] if bounds is None else [bounds])
        return account_view(await self._find(caller, credentials, number))

    async def put_all(self, caller: Caller, given: BulkInput) -> int:
        """Create or replace account numbers, all or none; return their number. Raises InvalidFields and NotFound."""
        if not 1 <= len(given.account_numbers) <= MOST:
            raise InvalidFields.field_error("account_numbers", f"send 1 to {MOST} account numbers in one call")
        credentials = await self._own(caller, given.shortcode)
        bounds: dict[str, Bounds] = {}
        with check_fields() as checks:
            for place, one in enumerate(given.account_numbers):
                found = read_bounds(checks, one.number, one, f"account_numbers[{place}].")
                if found is not None and bounds.setdefault(found.number, found) is not found:
                    checks.fail(f"account_numbers[{place}].number", "is repeated: case and blanks do not count")
        await self._store(caller, credentials, list(bounds.values()))
        return len(bounds)

    async def get(self, caller: Caller, number: str, shortcode: str | None) -> AccountWithEntries:
        """Raises NotFound."""
        row = await self._find(caller, await self._own(caller, shortcode), number)
        entries = await self._db.fetch(account_tables.ENTRIES, row["account_id"], _SHOWN)
        return account_with_entries(row, entries)

    async def delete(self, caller: Caller, number: str, shortcode: str | None) -> str:
        """Delete an account number without money. Raises NotFound, and Conflict if money was received."""
        row = await self._find(caller, await self._own(caller, shortcode), number)
        async with self._db.transaction():
            await self._db.fetch(account_tables.LOCK, [row["account_id"]])
            if await self._db.fetch(account_tables.ENTRIES, row["account_id"], 1):
                raise Conflict(
                    f"{row['number']} has received money, and its record stays: PUT it with active false, so that it "
                    "takes no more"
                )
            await self._db.run(AccountNumberRow.delete().where(AccountNumberRow.account_id == row["account_id"]))
            await self._audit.record(
                "account_number.deleted",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=row["account_id"],
                env=caller.env,
                detail={"shortcode": row["shortcode"]},
            )
        return str(row["number"])

    async def page(self, caller: Caller, filters: AccountQuery) -> Page[AccountView]:
        """Raises InvalidFields."""
        found = Conditions(caller.env, caller.merchant_id)
        if filters.shortcode is not None:
            found.add("receiver.number = {}", filters.shortcode)
        if filters.active is not None:
            found.add("is_active = {}", filters.active)
        page = await account_tables.ACCOUNTS.page(self._db, found, filters.cursor, filters.limit, count=filters.count)
        return page_of(page.map(account_view))

    async def allocate_waiting(self) -> int:
        """Allocate money that was recorded before its account number, or that a payment might have had.

        Returns the number of transactions. Each run looks at all of the money, and allocates up to ``_EACH`` for each
        merchant: held money delays no other. A lost race is repeated by the next run.
        """
        after = await self._db.fetchval(account_tables.LEAST, self._clock.now() - _LATE)
        tries: Counter[str] = Counter()
        return sum(
            [
                await self._allocate_at(receiver, after, tries)
                for receiver in await self._db.fetch(account_tables.RECEIVERS)
            ]
        )

    async def _allocate_at(self, receiver: Row, after: str, tries: Counter[str]) -> int:
        count = 0
        while rows := await self._db.fetch(account_tables.WAITING, receiver["receiver_id"], after, _PAGE):
            after = rows[-1]["transaction_id"]
            reports = [_report(row, receiver) for row in rows]
            found = await self._counting.find(
                [_money(report, row, receiver) for report, row in zip(reports, rows, strict=True)]
            )
            for report, subject in zip(reports, found, strict=True):
                if isinstance(subject, FoundSubject) and tries[subject.merchant_id] < _EACH:
                    tries[subject.merchant_id] += 1
                    count += await self._receive(report)
            if len(rows) < _PAGE:
                break
        return count

    async def _receive(self, report: ReportedTransaction) -> bool:
        try:
            async with self._db.transaction():
                (recorded,) = await self._allocations.receive([report])
        except ConcurrentUpdate:
            return False
        return recorded.subject is not None

    async def _own(self, caller: Caller, shortcode: str | None) -> MpesaCredentials:
        if shortcode is None:
            credentials = await self._credentials.get(caller.merchant_id, caller.env)
        else:
            credentials = await self._credentials.active(caller.merchant_id, caller.env, shortcode)
        credentials.check_owner("an account number")
        return credentials

    async def _find(self, caller: Caller, credentials: MpesaCredentials, number: str) -> Any:
        return require_found(
            await self._db.fetchrow(
                account_tables.FIND, credentials.receiver_id, caller.merchant_id, normalise(number)
            ),
            f"there is no such account number at {credentials.shortcode}",
        )

    async def _store(self, caller: Caller, credentials: MpesaCredentials, given: Sequence[Bounds]) -> None:
        rows = [
            {
                "account_id": self._ids.new("acc"),
                "number": one.number,
                "expected_cents": None if one.expected is None else one.expected * 100,
                "min_cents": None if one.least is None else one.least * 100,
                "max_cents": None if one.most is None else one.most * 100,
                "is_active": one.is_active,
            }
            for one in given
        ]
        receiver_id, merchant_id = credentials.receiver_id, caller.merchant_id
        async with self._db.transaction():
            numbers = sorted(one.number for one in given)
            before = {
                row["account_id"]: row
                for row in await self._db.fetch(account_tables.LOCK_BY_NUMBER, receiver_id, merchant_id, numbers)
            }
            stored = await self._db.fetch(
                *account_tables.STORE.bind_rows(
                    rows, receiver_id=receiver_id, merchant_id=merchant_id, env=caller.env, now=self._clock.now()
                )
            )
            crossings: list[tuple[AccountState, str, int, None]] = []
            for row in stored:
                former = before.get(row["account_id"], row)
                received = row["received_cents"]
                state = crossed(former["received_cents"], former["expected_cents"], received, row["expected_cents"])
                if state is not None:
                    crossings.append((state, row["account_id"], received, None))
            await self._counting.publish(crossings)
            await self._audit.record(
                "account_numbers.stored",
                merchant_id=merchant_id,
                actor=caller.actor,
                subject_id=stored[0]["account_id"] if len(stored) == 1 else merchant_id,
                env=caller.env,
                detail={"shortcode": credentials.shortcode, "count": len(stored)},
            )


def _report(row: Row, receiver: Row) -> ReportedTransaction:
    return ReportedTransaction(
        source=row["first_source"],
        env=row["env"],
        number=receiver["number"],
        merchant_id=row["merchant_id"],
        direction="in",
        receipt=row["receipt"],
        occurred_at=row["occurred_at"],
        amount_cents=row["amount_cents"],
    )


def _money(report: ReportedTransaction, row: Row, receiver: Row) -> IncomingMoney:
    return IncomingMoney(
        transaction_id=row["transaction_id"],
        source=report.source,
        env=report.env,
        receiver_id=row["receiver_id"],
        number=report.number,
        is_till=receiver["kind"] == "till",
        owner_id=receiver["owner_id"],
        merchant_id=report.merchant_id,
        receipt=report.receipt,
        amount_cents=report.amount_cents,
        occurred_at=report.occurred_at,
        account_number=row["account_number"],
        payer=row["payer"],
        payer_digest=row["payer_digest"],
        kind=row["kind"],
        conflict_id=row["conflict_id"],
    )
