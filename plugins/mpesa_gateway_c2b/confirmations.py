"""Applies confirmations: each becomes a transaction, or another witness of one."""

from collections.abc import Sequence

import structlog

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.money import Kes
from mpesa_gateway_c2b import tables
from mpesa_gateway_c2b.errors import OtherReceiver
from mpesa_gateway_c2b.events import C2bConfirmed
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import (
    Direction,
    Evidence,
    Proof,
    Receiver,
    Source,
    StatementMatching,
    possible_times,
)
from mpesa_gateway_transactions.api import ReportedTransaction, Transactions

log = structlog.get_logger(__name__)

SOURCE = "c2b"


class Confirmations:
    """Records the money of confirmations. Needs the transaction that stores the callback."""

    def __init__(
        self,
        *,
        db: Database,
        callbacks: Callbacks,
        credentials: Credentials,
        matching: StatementMatching,
        transactions: Transactions,
    ) -> None:
        self._db = db
        self._callbacks = callbacks
        self._credentials = credentials
        self._matching = matching
        self._transactions = transactions

    async def apply(self, confirmed: Sequence[C2bConfirmed]) -> None:
        """Raises OtherReceiver."""
        for one in confirmed:
            await self._apply(one)

    async def _apply(self, one: C2bConfirmed) -> None:
        address = await self._db.fetchrow(tables.OF_RECEIVER, one.subject_id)
        if address is None or not await self._is_of(address, one.number):
            raise OtherReceiver("this confirmation names another shortcode than its address")
        # A payment is locked before its transaction.
        settled = await self._matching.apply(evidence_of(one, address))
        await self._transactions.record([reported_transaction(one, address)])
        await self._callbacks.mark_applied(one.callback_id)
        log.info("c2b_confirmed", callback_id=one.callback_id, finding=settled.finding, payment_id=settled.payment_id)

    async def _is_of(self, address: Row, number: str) -> bool:
        """M-Pesa names a till by its own number or its store's."""
        return number == address["number"] or address["number"] in await self._credentials.receivers_named(
            address["env"], number
        )


def evidence_of(one: C2bConfirmed, address: Row) -> Evidence:
    """Return what the confirmation states. Its token proves the sender."""
    time = () if one.paid_at is None else possible_times((one.paid_at,), now=one.received_at)
    shillings, cents = divmod(one.amount_cents, 100)
    return Evidence(
        source=Source.C2B,
        proof=Proof.ADDRESS,
        direction=Direction.IN,
        receiver=Receiver(address["env"], address["number"], address["kind"] == "till"),
        receipt=one.receipt,
        reference=one.account_number,
        amount=f"{shillings}.{cents:02}" if cents else Kes(shillings),
        payer=one.payer or one.payer_digest,
        time=time,
        is_impossible=one.paid_at is not None and not time,
    )


def reported_transaction(one: C2bConfirmed, address: Row) -> ReportedTransaction:
    """Return the money. Without an owner, it is of the merchant that registered last."""
    return ReportedTransaction(
        source=SOURCE,
        env=address["env"],
        number=address["number"],
        merchant_id=address["owner_id"] or address["merchant_id"],
        direction="in",
        receipt=one.receipt,
        occurred_at=one.paid_at or one.received_at,
        amount_cents=one.amount_cents,
        payer=one.payer,
        payer_name=one.payer_name,
        account_number=one.account_number,
        kind=one.transaction_type,
    )
