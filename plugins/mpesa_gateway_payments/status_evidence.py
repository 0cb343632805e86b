"""Evidence from the answers to status queries."""

from contextlib import suppress

from mpesa_gateway.daraja.wire import read_payer
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_payments.evidence import (
    Evidence,
    Handle,
    Proof,
    Receiver,
    Source,
    names_only,
    party_number,
    possible_times,
    read_amount,
    read_direction,
)


class StatusEvidence:
    """Reads answers, with the receivers that they may name."""

    def __init__(self, db: Database, credentials: Credentials) -> None:
        self._db = db
        self._credentials = credentials

    async def read(self, check: Row, result: StatusResulted) -> Evidence:
        payment_id: str | None = check["payment_id"] if check["receipt"] is None else None
        time = () if result.finished_at is None else possible_times((result.finished_at,), now=result.received_at)
        current = await self._numbers(check)
        former = await self._credentials.stores_of(check["env"], check["shortcode"]) - current
        is_shared = await self._is_shared(check, result, former)
        return Evidence(
            source=Source.STATUS_QUERY,
            proof=Proof.ANSWER,
            direction=read_direction(result.payees, current | former, debtors=result.payers, amount=result.amount_text),
            receiver=Receiver(check["env"], check["shortcode"]),
            receipt=result.receipt or check["receipt"],
            handle=None if payment_id is None else Handle(payment_id),
            reference=check["reference"],
            amount=read_amount(result.amount, result.amount_text),
            payer=read_payer(result.payers),
            time=time,
            is_impossible=result.finished_at is not None and not time,
            names_receiver=names_only(result.payees, check["shortcode"]) and not is_shared,
            is_shared=is_shared,
        )

    async def _is_shared(self, check: Row, result: StatusResulted, former: frozenset[str]) -> bool:
        """M-Pesa may name a till by its store's number, and a former one proves no till.

        The conversation of the payment's push proves the till.
        """
        numbers = {number for party in result.payees if (number := party_number(party)) is not None}
        named = [await self._credentials.receivers_named(check["env"], number) for number in sorted(numbers)]
        if not named or (numbers - former and frozenset.intersection(*named) <= {check["shortcode"]}):
            return False
        if check["receipt"] is not None or result.money_conversation_id is None:
            return True
        (payment,) = await self._db.fetch(tables.READ, [check["payment_id"]])
        return bool(payment["merchant_request_id"] != result.money_conversation_id)

    async def _numbers(self, check: Row) -> frozenset[str]:
        """M-Pesa names the receiver by its public number or its store number."""
        numbers = {check["shortcode"]}
        with suppress(ProviderNotConfigured):
            known = await self._credentials.get(check["merchant_id"], check["env"], check["shortcode"])
            numbers.add(known.store_number or known.shortcode)
        return frozenset(numbers)
