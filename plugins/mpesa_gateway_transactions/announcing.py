"""Publishing of incoming money, and the sweep of money whose time has come."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from mpesa_gateway.clock import Clock, rfc3339
from mpesa_gateway.db.engine import UNREACHABLE, Database
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.logs import trace
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.api import Allocations, ReportedTransaction
from mpesa_gateway_transactions.events import TransactionAllocated, TransactionReceived
from mpesa_gateway_transactions.tables import TransactionRow
from mpesa_gateway_transactions.views import Values, cents

log = structlog.get_logger(__name__)

_BATCH = 100


def event_fields(row: Values, told: str | None = None) -> dict[str, Any]:
    """Return the common fields. The event is the receiver owner's, or of the merchant ``told``."""
    return {
        "merchant_id": told or row["owner_id"] or row["merchant_id"],
        "env": row["env"],
        "subject_id": row["transaction_id"],
        "transaction_id": row["transaction_id"],
        "shortcode": row["number"],
        "money_kind": row["category"],
        "amount": cents(row["amount_cents"]),
        "receipt": row["receipt"],
        "account_number": row["account_number"],
        "payer": {"phone": row["payer"], "name": row["payer_name"]},
        "paid_at": rfc3339(row["occurred_at"]),
    }


def report_of(row: Values) -> ReportedTransaction:
    """Return a recorded transaction as its first report."""
    return ReportedTransaction(
        source=row["first_source"],
        env=row["env"],
        number=row["number"],
        merchant_id=row["merchant_id"],
        direction=row["direction"],
        receipt=row["receipt"],
        occurred_at=row["occurred_at"],
        amount_cents=row["amount_cents"],
    )


class Announcer:
    """Publishes ``transaction.received`` and ``transaction.allocated``."""

    def __init__(self, *, db: Database, clock: Clock, outbox: Outbox) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox

    async def announce(self, transaction_ids: Sequence[str]) -> None:
        """Publish unallocated money, each transaction once."""
        if not transaction_ids:
            return
        rows = await self._db.fetch(allocation_sql.ANNOUNCE, list(transaction_ids), self._clock.now())
        rows.sort(key=lambda row: row["transaction_id"])
        await self._outbox.publish([TransactionReceived(**event_fields(row)) for row in rows])

    async def publish_allocated(
        self, transaction_ids: Sequence[str], note: str | None = None, *, told: Mapping[str, str] | None = None
    ) -> None:
        """``told``: merchants by receipt, in place of the receiver's owner."""
        rows = await self._db.fetch(allocation_sql.FIND_ALL, list(transaction_ids)) if transaction_ids else []
        await self._outbox.publish(
            [
                TransactionAllocated(
                    **event_fields(row, None if told is None else told[row["receipt"]]),
                    allocated_to={"type": row["subject_kind"], "id": row["subject_id"]},
                    note=note,
                )
                for row in rows
            ]
        )


class AnnouncementSweep:
    """Offers held money to the rules once more, and announces what is left."""

    def __init__(self, *, db: Database, clock: Clock, allocations: Allocations) -> None:
        self._db = db
        self._clock = clock
        self._allocations = allocations

    async def run(self) -> int:
        """Return the number of transactions; one that fails delays no other."""
        count, failed = 0, list[str]()
        while rows := await self._db.fetch(allocation_sql.DUE, self._clock.now(), _BATCH, failed):
            for row in rows:
                transaction_id = row["transaction_id"]
                try:
                    async with self._db.transaction():
                        found = await self._db.fetchrow(allocation_sql.FIND, transaction_id)
                        if found is not None:
                            await self._allocations.receive([report_of(found)])
                        # With or without a subject, it is no longer due.
                        await self._db.run(
                            TransactionRow.update({TransactionRow.announce_at: None}).where(
                                TransactionRow.transaction_id == transaction_id,
                                TransactionRow.announce_at.is_not_null(),
                            )
                        )
                    count += 1
                except UNREACHABLE:
                    raise
                except Exception as problem:  # noqa: BLE001 - one transaction caused it
                    failed.append(transaction_id)
                    log.error("transaction_not_announced", transaction_id=transaction_id, exception=trace(problem))
        return count
