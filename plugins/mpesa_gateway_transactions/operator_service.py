"""Operators' use cases of transactions."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage, Total
from mpesa_gateway.env import Env
from mpesa_gateway.errors import require_found
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.security.url_seal import Terms
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.allocating import incoming_money
from mpesa_gateway_transactions.announcing import report_of
from mpesa_gateway_transactions.api import IncomingMoney
from mpesa_gateway_transactions.listing import TransactionList, allocations_of, numbers_of, witnesses_of
from mpesa_gateway_transactions.schemas import TransactionFilters, TransactionQuery
from mpesa_gateway_transactions.views import EXPORTED, exported

OPERATORS_EXPORTED = (*EXPORTED, "merchant_id")
"""The columns of the operators' CSV file."""

SEALED = ("phone", "account_number")
"""Filters that may hold a number."""

_PLAIN = TransactionFilters.__struct_fields__

_OPEN = (
    "direction = 'in'",
    "subject_id IS NULL",
    "refunded_cents + refund_reserved_cents = 0",
    "reversed_outside IS NULL",
)


class OperatorTransactionFilters(TransactionFilters, frozen=True, kw_only=True):
    """Filters of the operators' list. ``terms`` holds the sealed ``phone`` and ``account_number``.

    ``open`` selects money in that still needs a decision: unallocated, and no refund of it has begun.
    """

    merchant: str | None = None
    terms: str | None = None
    cursor: str | None = None
    open: bool = False


class TransactionOperatorService:
    """A chosen merchant limits a list to what the merchant sees.

    ``within`` limits every list to a member's merchant; None for the host's people.
    """

    def __init__(self, *, db: Database, sealer: Sealer) -> None:
        self._db = db
        self._list = TransactionList(db)
        self.terms = Terms(sealer, place="transactions")

    async def page(
        self, env: Env, filters: OperatorTransactionFilters, limit: int, *, within: str | None
    ) -> KeysetPage[Row]:
        """Raises InvalidFields."""
        wanted = TransactionQuery(**_values(filters), limit=limit, cursor=filters.cursor)
        listing, found = await self._conditions(within, env, filters, wanted)
        return await listing.page(self._db, found, wanted.cursor, wanted.limit)

    async def numbers(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return shortcodes by the receiver's id."""
        return dict(await numbers_of(self._db, rows))

    async def total(self, env: Env, filters: OperatorTransactionFilters, *, within: str | None) -> Total:
        listing, found = await self._conditions(within, env, filters)
        return await listing.total(self._db, found)

    async def count_newer(self, env: Env, filters: OperatorTransactionFilters, *, within: str | None) -> int:
        listing, found = await self._conditions(within, env, filters)
        return await listing.count_newer(self._db, found, filters.cursor)

    async def _conditions(
        self,
        within: str | None,
        env: Env,
        filters: OperatorTransactionFilters,
        wanted: TransactionFilters | None = None,
    ) -> tuple[KeysetList, Conditions]:
        listing, found = await self._list.conditions(within or filters.merchant, env, wanted or _plain(filters))
        if filters.open:
            found.parts += _OPEN
        return listing, found

    async def export(
        self, env: Env, filters: OperatorTransactionFilters, *, within: str | None
    ) -> AsyncGenerator[list[Sequence[Any]]]:
        """Yield rows of OPERATORS_EXPORTED, of all merchants without a chosen one."""
        listing, found = await self._conditions(within, env, filters)
        async for rows in listing.export(self._db, found, lambda row: row):
            numbers = await self.numbers(rows)
            yield [(*exported(row, numbers[row["receiver_id"]]), row["merchant_id"]) for row in rows]

    async def get(self, transaction_id: str) -> Row:
        """Return a transaction of any merchant and env, with its receiver. Raises NotFound."""
        return require_found(
            await self._db.fetchrow(allocation_sql.FIND, transaction_id), "there is no such transaction"
        )

    async def find(self, transaction_id: str) -> IncomingMoney | None:
        """See OpenMoney."""
        row = await self._db.fetchrow(allocation_sql.FIND, transaction_id)
        if row is None or not is_open(row):
            return None
        return incoming_money(report_of(row), {**dict(row), "kind": row["receiver_kind"], "money_kind": row["kind"]})

    async def find_all(self, ids: Sequence[str]) -> list[Row]:
        """Return the transactions with these ids, of any merchant and env, with their receivers."""
        return await self._db.fetch(allocation_sql.FIND_ALL, list(ids))

    async def of_receipt(self, env: Env, receipt: str) -> Row | None:
        return await self._db.fetchrow(allocation_sql.OF_RECEIPT, env, receipt)

    async def shortcodes(self, merchant_id: str, env: Env) -> list[str]:
        """Return the merchant's active paybills and tills."""
        return [row["number"] for row in await self._db.fetch(allocation_sql.OFFERED, merchant_id, env)]

    async def witnesses(self, transaction_id: str) -> list[dict[str, Any]]:
        return (await witnesses_of(self._db, [transaction_id]))[transaction_id]

    async def allocations(self, transaction_id: str) -> list[dict[str, Any]]:
        return await allocations_of(self._db, transaction_id)


def is_open(row: Row) -> bool:
    is_untouched = not (row["refunded_cents"] or row["refund_reserved_cents"] or row["reversed_outside"])
    return row["direction"] == "in" and row["subject_id"] is None and is_untouched


def _values(filters: OperatorTransactionFilters) -> dict[str, Any]:
    return {name: getattr(filters, name) for name in _PLAIN}


def _plain(filters: OperatorTransactionFilters) -> TransactionFilters:
    return TransactionFilters(**_values(filters))


def audited(filters: OperatorTransactionFilters) -> dict[str, str]:
    """Return the filters without phone numbers."""
    chosen = {name: value for name, value in msgspec.structs.asdict(filters).items() if value not in {None, False, ""}}
    return {
        name: "one number" if name == "phone" else mask_phones(str(value))
        for name, value in chosen.items()
        if name not in {"cursor", "terms"}
    }
