"""Operators' use cases of refunds, for all merchants."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.keyset import Conditions, KeysetPage, OperatorQuery, Total
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.money import Kes
from mpesa_gateway.ops_contract import PageRequest
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway_payments.api import Payments, PaymentView
from mpesa_gateway_refunds.listing import REFUNDS
from mpesa_gateway_refunds.schemas import CreateRefund, RefundView
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.tables import RefundRow, waiting_of


class RefundsQuery(OperatorQuery, frozen=True, kw_only=True):
    """Filters of the operators' list; ``waiting`` selects refunds that need review."""

    status: Literal["pending", "completed", "failed"] | None = None
    since: datetime | None = None
    until: datetime | None = None
    waiting: bool = False


def _conditions(env: Env, query: RefundsQuery) -> Conditions:
    found = Conditions(env, query.merchant, query.since, query.until)
    found.equal(status=query.status)
    if query.waiting:
        found.add("attention IS NOT NULL")
    return found


class RefundOperatorService:
    """Lists, finds, counts and requests refunds."""

    def __init__(self, *, db: Database, merchants: Merchants, payments: Payments, refunds: RefundService) -> None:
        self._db = db
        self._merchants = merchants
        self._payments = payments
        self._refunds = refunds

    async def page(self, env: Env, query: RefundsQuery, limit: int) -> KeysetPage[Row]:
        """Return a page of refunds of ``env``. Raises InvalidFields for a bad cursor."""
        return await REFUNDS.page(self._db, _conditions(env, query), query.cursor, limit)

    async def total(self, env: Env, query: RefundsQuery) -> Total:
        """Return the number and the amount of the matching refunds."""
        return await REFUNDS.total(self._db, _conditions(env, query))

    async def get(self, refund_id: str) -> Found:
        """Return a refund of any merchant. Raises NotFound."""
        row: Found | None = await self._db.run(RefundRow.select().where(RefundRow.refund_id == refund_id).first())
        if row is None:
            raise NotFound("there is no such refund")
        return row

    async def of_payment(self, payment_id: str) -> list[Found]:
        """Return a payment's refunds, newest first."""
        rows: list[Found] = await self._db.run(
            RefundRow.select()
            .where(RefundRow.payment_id == payment_id)
            .order_by(RefundRow.refund_id, ascending=False)
            .limit(100)
        )
        return rows

    async def count_waiting(self, env: Env, merchant_id: str | None) -> int:
        count: int = await self._db.run(waiting_of(env, merchant_id))
        return count

    async def payment(self, payment_id: str) -> PaymentView:
        """Return a refund's payment. Raises NotFound."""
        payment = await self._payments.find(payment_id)
        if payment is None:
            raise NotFound("there is no such payment")
        return payment

    async def request(self, visit: PageRequest, payment_id: str) -> RefundView:
        """Request a refund from a submitted form.

        Raises InvalidFields, NotFound, Conflict, KeyMismatch, ProviderNotConfigured, ProviderRejected and
        ProviderUnavailable.
        """
        payment = await self.payment(payment_id)
        merchant = await self._merchants.require(payment.merchant_id)
        wanted: dict[str, str] = {"payment_id": payment_id}
        wanted |= {name: text for name in ("amount", "reason") if (text := visit.text(name))}
        body = read_body(msgspec.json.encode(wanted), CreateRefund)
        service = self._refunds
        refund, _ = await service.request(visit.caller(merchant, payment.env), body, visit.text("key") or None)
        return refund


def refundable_amount(payment: PaymentView, refunds: Sequence[Found]) -> int:
    """Return the refundable KES of a payment: 0 unless it is paid and its receipt is known."""
    if payment.status not in {"completed", "partially_reversed"} or payment.receipt is None:
        return 0
    reserved = sum(row["amount"] for row in refunds if row["status"] == "pending")
    left: int = Kes.parse(payment.amount) - Kes.parse(payment.refunded_amount) - reserved
    return left
