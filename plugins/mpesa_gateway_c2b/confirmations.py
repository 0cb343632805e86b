"""Applies confirmations: each becomes a transaction, or another witness of one."""

from collections.abc import Sequence

import structlog

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway_c2b import tables
from mpesa_gateway_c2b.errors import OtherReceiver
from mpesa_gateway_c2b.events import C2bConfirmed
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_transactions.api import Allocations, ReportedTransaction

log = structlog.get_logger(__name__)


class Confirmations:
    """Records the money of confirmations. Needs the transaction that stores the callback."""

    def __init__(
        self, *, db: Database, callbacks: Callbacks, credentials: Credentials, allocations: Allocations
    ) -> None:
        self._db = db
        self._callbacks = callbacks
        self._credentials = credentials
        self._allocations = allocations

    async def apply(self, confirmed: Sequence[C2bConfirmed]) -> None:
        """Raises OtherReceiver."""
        for one in confirmed:
            await self._apply(one)

    async def _apply(self, one: C2bConfirmed) -> None:
        address = await self._db.fetchrow(tables.OF_RECEIVER, one.subject_id)
        if address is None or not await self._is_of(address, one.number):
            raise OtherReceiver("this confirmation names another shortcode than its address")
        (recorded,) = await self._allocations.receive([reported_transaction(one, address)])
        await self._callbacks.mark_applied(one.callback_id)
        kind = None if recorded.subject is None else recorded.subject.kind
        log.info("c2b_confirmed", transaction_id=recorded.transaction_id, is_new=recorded.is_new, subject=kind)

    async def _is_of(self, address: Row, number: str) -> bool:
        """M-Pesa names a till by its own number or its store's."""
        return number == address["number"] or address["number"] in await self._credentials.receivers_named(
            address["env"], number
        )


def reported_transaction(one: C2bConfirmed, address: Row) -> ReportedTransaction:
    """Return the money. Without an owner, it is of the merchant that registered last."""
    return ReportedTransaction(
        source="c2b",
        env=address["env"],
        number=address["number"],
        merchant_id=address["owner_id"] or address["merchant_id"],
        direction="in",
        receipt=one.receipt,
        occurred_at=one.paid_at or one.received_at,
        amount_cents=one.amount_cents,
        payer=one.payer,
        payer_digest=one.payer_digest,
        payer_name=one.payer_name,
        account_number=one.account_number,
        kind=one.transaction_type,
    )
