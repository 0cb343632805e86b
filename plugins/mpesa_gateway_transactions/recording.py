"""Recording of transactions, with one statement for any number of reports."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.deferred import ConcurrentUpdate, DeferredWrite
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids
from mpesa_gateway.phone import normal_phone
from mpesa_gateway_transactions import allocation_sql, tables
from mpesa_gateway_transactions.api import RecordedTransaction, ReportedTransaction, Subject

ANNOUNCED_AFTER = timedelta(seconds=110)
"""Time in which a report may give money its subject before it is announced."""

_Key = tuple[str, str, str]
"""Env, direction and receipt."""


class TransactionRecorder:
    """The port through which other plugins record money."""

    def __init__(self, *, db: Database, clock: Clock, ids: Ids) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids

    async def record(self, seen: Sequence[ReportedTransaction]) -> list[RecordedTransaction | None]:
        """Raises ValueError for two reports of one receipt."""
        if not seen:
            return []
        if len({_key(one) for one in seen}) < len(seen):
            raise ValueError("each receipt is recorded once in a call")
        rows = [self._columns(one) for one in seen]
        found = await self._db.fetch(tables.RECORD, *self._bound(rows))
        known = {(row["env"], row["direction"], row["receipt"]): row for row in found}
        return [
            None if (row := known.get(_key(one))) is None else _recorded(row, columns["transaction_id"])
            for one, columns in zip(seen, rows, strict=True)
        ]

    async def announced(self, env: Env, receipts: Sequence[str]) -> dict[str, str]:
        rows = await self._db.fetch(allocation_sql.ANNOUNCED, env, list(receipts))
        return {row["receipt"]: row["merchant_id"] for row in rows}

    async def defer(self, seen: Sequence[ReportedTransaction]) -> None:
        """Raises ConcurrentUpdate for different reports of one receipt."""
        if not seen:
            return
        different = dict.fromkeys(seen)
        if len({_key(one) for one in different}) < len(different):
            raise ConcurrentUpdate("two reports of one receipt")
        rows = [self._columns(one) for one in different]
        await self._db.defer(DeferredWrite(tables.INSERT, self._bound(rows), expects=len(rows), then=tables.WITNESS))

    def _bound(self, rows: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
        now = self._clock.now()
        return tables.bind_rows(rows, seen_at=now, announce_at=now + ANNOUNCED_AFTER)[1:]

    def _columns(self, one: ReportedTransaction) -> dict[str, Any]:
        subject = one.subject
        return {
            "transaction_id": self._ids.new("txn"),
            "env": one.env,
            "number": one.number,
            "merchant_id": one.merchant_id,
            "direction": one.direction,
            "kind": one.kind,
            "receipt": one.receipt,
            "amount_cents": one.amount_cents,
            "fee_cents": one.fee_cents,
            "payer": None if one.payer is None else normal_phone(one.payer),
            "payer_digest": one.payer_digest,
            "payer_name": one.payer_name,
            "account_number": one.account_number,
            "occurred_at": one.occurred_at,
            "is_announced": one.is_announced,
            "subject_kind": None if subject is None else subject.kind,
            "subject_id": None if subject is None else subject.subject_id,
            "conflict_id": one.conflict_id,
            "source": one.source,
        }


def _key(one: ReportedTransaction) -> _Key:
    return one.env, one.direction, one.receipt


def _recorded(row: Row, new_id: str) -> RecordedTransaction:
    kind = row["subject_kind"]
    return RecordedTransaction(
        transaction_id=row["it"],
        merchant_id=row["merchant_id"],
        amount_cents=row["amount_cents"],
        subject=None if kind is None else Subject(kind, row["subject_id"]),
        is_new=row["it"] == new_id,
    )
