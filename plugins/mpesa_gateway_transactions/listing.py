"""Look-ups and lists of transactions, newest first, served by indexes."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound, check_fields
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.schemas import TransactionFilters, TransactionQuery
from mpesa_gateway_transactions.tables import AllocationRow, WitnessRow
from mpesa_gateway_transactions.views import Values

TRANSACTIONS = KeysetList(table="transaction", key="transaction_id", prefix="txn", by_index=True, amount="amount_cents")

_OF_OWNER = replace(TRANSACTIONS, of_merchants=False)
"""For the owner of a receiver that other merchants use: its ways name the merchants."""

_MOST_CENTS = 2**62

_MOST_ALONE = 20
"""Receivers; each is a query of its own within the list's, which Postgres has to plan."""


def owner_of(row: Values) -> str:
    """Return the merchant of the money's subject, or else the receiver's owner."""
    is_named = row["subject_id"] is not None or row["conflict_id"] is not None
    merchant_id: str = row["merchant_id"] if is_named or row["owner_id"] is None else row["owner_id"]
    return merchant_id


async def find_transaction(db: Database, merchant_id: str | None, env: Env, transaction_id: str) -> Row:
    """Return a merchant's transaction, or with None any, with its receiver. Raises NotFound."""
    row = await db.fetchrow(allocation_sql.FIND, transaction_id)
    owners = set[str | None]() if row is None else {owner_of(row), row["owner_id"]}
    if row is None or row["env"] != env or (merchant_id is not None and merchant_id not in owners):
        raise NotFound("there is no such transaction")
    return row


async def witnesses_of(db: Database, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the later reports of transactions, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {one: [] for one in ids}
    if not ids:
        return found
    rows: list[dict[str, Any]] = await db.run(
        WitnessRow.select().where(WitnessRow.transaction_id.is_in(list(ids))).order_by(WitnessRow.seen_at)
    )
    for row in rows:
        found[row["transaction_id"]].append(row)
    return found


async def allocations_of(db: Database, transaction_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = await db.run(
        AllocationRow.select().where(AllocationRow.transaction_id == transaction_id).order_by(AllocationRow.number)
    )
    return rows


async def numbers_of(db: Database, rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the shortcodes of the rows' receivers."""
    ids = sorted({row["receiver_id"] for row in rows})
    found = await db.fetch(allocation_sql.NUMBERS, ids) if ids else []
    return {row["receiver_id"]: row["number"] for row in found}


class TransactionList:
    """Lists what a merchant sees: its own money, and all of the receivers that it owns."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(self, merchant_id: str | None, env: Env, filters: TransactionQuery) -> KeysetPage[Row]:
        """Raises InvalidFields."""
        listing, found = await self.conditions(merchant_id, env, filters)
        return await listing.page(self._db, found, filters.cursor, filters.limit)

    async def total(self, merchant_id: str | None, env: Env, filters: TransactionFilters) -> tuple[int, int]:
        """Return the number and the sum in cents."""
        listing, found = await self.conditions(merchant_id, env, filters)
        total = await listing.total(self._db, found)
        return total.count, total.amount

    async def export(self, merchant_id: str | None, env: Env, filters: TransactionFilters) -> AsyncGenerator[list[Row]]:
        listing, found = await self.conditions(merchant_id, env, filters)
        async for rows in listing.export(self._db, found, lambda row: row):
            yield rows

    async def conditions(
        self, merchant_id: str | None, env: Env, filters: TransactionFilters
    ) -> tuple[KeysetList, Conditions]:
        shared = [] if merchant_id is None else await self._db.fetch(allocation_sql.SHARED, merchant_id, env)
        own = None if shared else merchant_id
        found = Conditions(env, own, filters.since, filters.until)
        phone = _add_filters(found, filters)
        if filters.shortcode is not None:
            # As a value, not as a subquery: Postgres then knows how rare the receiver is.
            receiver_id = await self._db.fetchval(allocation_sql.RECEIVER, env, filters.shortcode)
            if receiver_id is None:
                found.parts.append("false")
            else:
                found.add("receiver_id = {}", receiver_id)
        seen: list[tuple[str, list[Any]]] = [("true", [])]
        if shared:
            seen = [("merchant_id = {}", [merchant_id]), *_ways_of([row["receiver_id"] for row in shared])]
        for way, values in seen:
            for column, alike in () if phone is None else _phone_ways(phone):
                found.add_way(f"{way} AND {column}", *values, alike)
            if phone is None and shared:
                found.add_way(way, *values)
        return (_OF_OWNER if shared else TRANSACTIONS), found


def _ways_of(receivers: list[str]) -> list[tuple[str, list[Any]]]:
    """Each receiver alone, so that an index has its rows in the order of the list; many are one way."""
    if len(receivers) > _MOST_ALONE:
        return [("receiver_id = ANY({})", [receivers])]
    return [("receiver_id = {}", [receiver_id]) for receiver_id in receivers]


def _phone_ways(phone: Msisdn) -> list[tuple[str, Any]]:
    digest = sha256(str(phone).encode()).hexdigest()
    forms = [str(phone), f"+{phone}", f"0{phone[3:]}", digest]
    return [("payer = ANY({})", forms), ("payer_digest = {}", digest)]


def _add_filters(found: Conditions, filters: TransactionFilters) -> Msisdn | None:
    """Return the phone number. Partial indexes need constants."""
    with check_fields() as checks:
        least = None if filters.min_amount is None else checks.take("min_amount", Kes.parse, filters.min_amount)
        most = None if filters.max_amount is None else checks.take("max_amount", Kes.parse, filters.max_amount)
        phone = None if filters.phone is None else checks.take("phone", Msisdn.parse, filters.phone)
    if least is not None:
        found.add("amount_cents >= {}", min(int(least) * 100, _MOST_CENTS))
    if most is not None:
        found.add("amount_cents <= {}", min(int(most) * 100, _MOST_CENTS))
    if filters.direction is not None:
        found.parts.append("direction = 'out'" if filters.direction == "out" else "direction = 'in'")
    if filters.allocated is not None:
        # The index is of money without a subject.
        found.parts.append("is_settled" if filters.allocated else "subject_id IS NULL AND NOT is_settled")
    found.equal(category=filters.kind)
    if filters.account_number is not None:
        found.add("upper(account_number) = upper({}::text)", filters.account_number.replace("\x00", ""))
    if filters.receipt is not None:
        found.add("direction IN ('in', 'out') AND receipt = {}", filters.receipt.upper())
    return phone
