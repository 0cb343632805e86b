"""Use cases of transactions for merchants and operators."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import meta_of
from mpesa_gateway_transactions.listing import (
    TransactionList,
    allocations_of,
    find_transaction,
    numbers_of,
    witnesses_of,
)
from mpesa_gateway_transactions.manual import ManualAllocation
from mpesa_gateway_transactions.schemas import (
    Allocate,
    TransactionDetails,
    TransactionFilters,
    TransactionQuery,
    TransactionView,
)
from mpesa_gateway_transactions.views import allocation_view, cents, exported, fields, view


class TransactionService:
    """With ``merchant_id`` None, the money of all merchants, for the host's operators."""

    def __init__(self, *, db: Database, manual: ManualAllocation) -> None:
        self._db = db
        self._list = TransactionList(db)
        self._manual = manual

    async def page(self, merchant_id: str | None, env: Env, filters: TransactionQuery) -> Page[TransactionView]:
        """Raises InvalidFields."""
        found = await self._list.page(merchant_id, env, filters)
        numbers = await numbers_of(self._db, found.rows)
        witnesses = await witnesses_of(self._db, [row["transaction_id"] for row in found.rows])
        meta = meta_of(found)
        if filters.count:
            count, amount = await self._list.total(merchant_id, env, filters)
            meta = msgspec.structs.replace(meta, total=count, total_amount=cents(amount))
        return Page(
            data=[view(row, numbers[row["receiver_id"]], witnesses[row["transaction_id"]]) for row in found.rows],
            meta=meta,
        )

    async def export(
        self, merchant_id: str | None, env: Env, filters: TransactionFilters
    ) -> AsyncGenerator[Sequence[Sequence[Any]]]:
        async for rows in self._list.export(merchant_id, env, filters):
            numbers = await numbers_of(self._db, rows)
            yield [exported(row, numbers[row["receiver_id"]]) for row in rows]

    async def get(self, merchant_id: str | None, env: Env, transaction_id: str) -> TransactionDetails:
        """Raises NotFound."""
        row = await find_transaction(self._db, merchant_id, env, transaction_id)
        witnesses = await witnesses_of(self._db, [transaction_id])
        decisions = await allocations_of(self._db, transaction_id)
        return TransactionDetails(
            **fields(row, row["number"], witnesses[transaction_id]),
            allocations=[allocation_view(one) for one in decisions],
        )

    async def allocate(
        self,
        merchant_id: str | None,
        env: Env,
        transaction_id: str,
        wanted: Allocate,
        *,
        actor: str,
        is_whole: bool = False,
    ) -> None:
        """See ManualAllocation."""
        await self._manual.allocate(merchant_id, env, transaction_id, wanted, actor=actor, is_whole=is_whole)
