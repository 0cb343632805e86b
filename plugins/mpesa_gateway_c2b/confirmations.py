"""Applies confirmations: each becomes a transaction, or another witness of one."""

from collections.abc import Sequence

import structlog

from mpesa_gateway.db.deferred import ConcurrentUpdate
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
        """Raises OtherReceiver, and ConcurrentUpdate for several that have to be applied one at a time."""
        if len({one.receipt for one in confirmed}) < len(confirmed):
            raise ConcurrentUpdate("two confirmations of one receipt")
        rows = await self._db.fetch(tables.OF_RECEIVERS, sorted({one.subject_id for one in confirmed}))
        addresses = {row["receiver_id"]: row for row in rows}
        reports: list[ReportedTransaction] = []
        for one in confirmed:
            address = addresses.get(one.subject_id)
            if address is None or not await self._is_of(address, one.number):
                if len(confirmed) > 1:
                    raise ConcurrentUpdate("one of several confirmations is refused")
                raise OtherReceiver("this confirmation names another shortcode than its address")
            reports.append(reported_transaction(one, address))
        for one, recorded in zip(confirmed, await self._allocations.receive(reports), strict=True):
            await self._callbacks.mark_applied(one.callback_id)
            kind = None if recorded.subject is None else recorded.subject.kind
            log.info("c2b_confirmed", transaction_id=recorded.transaction_id, is_new=recorded.is_new, subject=kind)

    async def _is_of(self, address: Row, number: str) -> bool:
        """M-Pesa names a till by its own number or its store's."""
        return number == address["number"] or await self._credentials.has_stated(
            merchant_of(address), address["env"], address["receiver_id"], number
        )


def merchant_of(address: Row) -> str:
    """Without an owner, money is of the merchant that registered last."""
    merchant_id: str = address["owner_id"] or address["merchant_id"]
    return merchant_id


def reported_transaction(one: C2bConfirmed, address: Row) -> ReportedTransaction:
    return ReportedTransaction(
        source="c2b",
        env=address["env"],
        number=address["number"],
        merchant_id=merchant_of(address),
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
