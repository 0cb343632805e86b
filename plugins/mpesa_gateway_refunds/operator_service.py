"""Operators' use cases of refunds, for all merchants."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.idempotency import read_key
from mpesa_gateway.db.keyset import Conditions, KeysetPage, OperatorQuery, Total
from mpesa_gateway.env import Env
from mpesa_gateway.errors import require_found
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.money import Kes
from mpesa_gateway.ops_contract import PageRequest
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway_payments.api import Payments, PaymentView
from mpesa_gateway_refunds.listing import REFUNDS
from mpesa_gateway_refunds.schemas import CreateRefund, RefundView
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.source import RefundSource
from mpesa_gateway_refunds.tables import RefundRow, waiting_of
from mpesa_gateway_transactions.api import RefundableTransactions


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


@dataclass(frozen=True, kw_only=True)
class MoneyToRefund:
    """``left`` KES of ``amount`` can be refunded; ``refusal`` is the reason if none can."""

    source: RefundSource
    env: Env
    merchant_id: str
    payer: str | None
    receipt: str | None
    amount: Kes
    left: int
    refusal: str

    @property
    def object_id(self) -> str:
        return next(iter(self.source.named.values()))

    @property
    def page(self) -> str:
        """Return the path of its page."""
        return f"{self.source.noun}s/{self.object_id}"


class RefundOperatorService:
    """Lists, finds, counts and requests refunds."""

    def __init__(
        self,
        *,
        db: Database,
        merchants: Merchants,
        payments: Payments,
        transactions: RefundableTransactions,
        refunds: RefundService,
    ) -> None:
        self._db = db
        self._merchants = merchants
        self._payments = payments
        self._transactions = transactions
        self._refunds = refunds

    async def page(self, env: Env, query: RefundsQuery, limit: int) -> KeysetPage[Row]:
        """Raises InvalidFields for a bad cursor."""
        return await REFUNDS.page(self._db, _conditions(env, query), query.cursor, limit)

    async def total(self, env: Env, query: RefundsQuery) -> Total:
        return await REFUNDS.total(self._db, _conditions(env, query))

    async def get(self, refund_id: str) -> Found:
        """Raises NotFound."""
        row: Found = require_found(
            await self._db.run(RefundRow.select().where(RefundRow.refund_id == refund_id).first()),
            "there is no such refund",
        )
        return row

    async def of_payment(self, payment_id: str) -> list[Found]:
        return await self._of(RefundSource(payment_id, None))

    async def of_transaction(self, transaction_id: str) -> list[Found]:
        return await self._of(RefundSource(None, transaction_id))

    async def _of(self, source: RefundSource) -> list[Found]:
        rows: list[Found] = await self._db.run(
            RefundRow.select().where(source.condition).order_by(RefundRow.refund_id, ascending=False).limit(100)
        )
        return rows

    async def count_waiting(self, env: Env, merchant_id: str | None) -> int:
        count: int = await self._db.run(waiting_of(env, merchant_id))
        return count

    async def payment(self, payment_id: str) -> PaymentView:
        """Raises NotFound."""
        return require_found(await self._payments.find(payment_id), "there is no such payment")

    async def money(self, visit: PageRequest) -> MoneyToRefund:
        """Return the payment or transaction in the page's address. Raises NotFound."""
        if (payment_id := visit.values.get("payment_id")) is not None:
            payment = await self.payment(payment_id)
            left = refundable_amount(payment, await self.of_payment(payment_id))
            unknown = payment.status == "completed" and payment.receipt is None
            why = f"the payment is {payment.status.replace('_', ' ')}{' and its receipt is not known yet' * unknown}"
            return MoneyToRefund(
                source=RefundSource(payment_id, None),
                env=payment.env,
                merchant_id=payment.merchant_id,
                payer=payment.phone,
                receipt=payment.receipt,
                amount=Kes.parse(payment.amount),
                left=left,
                refusal=why,
            )
        one = await self._transactions.find(visit.values["transaction_id"])
        return MoneyToRefund(
            source=RefundSource(None, one.transaction_id),
            env=one.env,
            merchant_id=one.merchant_id,
            payer=one.payer,
            receipt=one.receipt,
            amount=one.amount,
            left=int(one.left),
            refusal=one.refusal or "it has been refunded",
        )

    async def request(self, visit: PageRequest) -> RefundView:
        """Request a refund of the payment or transaction in the page's address from a submitted form.

        Raises InvalidFields, NotFound, Conflict, KeyMismatch, ProviderNotConfigured, ProviderRejected and
        ProviderUnavailable.
        """
        money = await self.money(visit)
        merchant = await self._merchants.require(money.merchant_id)
        wanted = money.source.named | {name: text for name in ("amount", "reason") if (text := visit.text(name))}
        body = read_body(msgspec.json.encode(wanted), CreateRefund)
        service, key = self._refunds, visit.text("key")
        refund, _ = await service.request(visit.caller(merchant, money.env), body, read_key(key) if key else None)
        return refund


def refundable_amount(payment: PaymentView, refunds: Sequence[Found]) -> int:
    """Return the refundable KES of a payment: 0 unless it is paid and its receipt is known."""
    if payment.status not in {"completed", "partially_reversed"} or payment.receipt is None:
        return 0
    reserved = sum(row["amount"] for row in refunds if row["status"] == "pending")
    left: int = Kes.parse(payment.amount) - Kes.parse(payment.refunded_amount) - reserved
    return left
