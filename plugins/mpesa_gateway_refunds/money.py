"""The money of refunds: reserved, then released or returned, on a payment or on a transaction without one."""

from dataclasses import dataclass

from mpesa_gateway.db.engine import Found
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.env import Env
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.api import RefundablePayments
from mpesa_gateway_refunds.events import transaction_refunded
from mpesa_gateway_refunds.source import RefundSource
from mpesa_gateway_transactions.api import RefundableTransactions


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """``amount`` KES are reserved of ``original_amount``; ``is_rest``: nothing else is left.

    ``shortcode`` is the number that was paid. ``allocated_to`` is the kind of the transaction's subject.
    """

    amount: Kes
    original_amount: Kes
    receipt: str
    is_rest: bool
    shortcode: str
    shortcode_id: str
    allocated_to: str | None = None


class RefundMoney:
    """Each method but ``offer`` needs an open transaction, in which the refund is locked or new."""

    def __init__(
        self,
        *,
        payments: RefundablePayments,
        transactions: RefundableTransactions,
        outbox: Outbox,
    ) -> None:
        self._payments = payments
        self._transactions = transactions
        self._outbox = outbox

    async def offer(self, merchant_id: str, env: Env, source: RefundSource) -> None:
        """Let the rules find what a transaction pays for, in a transaction of its own."""
        if source.transaction_id is not None:
            await self._transactions.offer(merchant_id, env, source.transaction_id)

    async def reserve(
        self, merchant_id: str, env: Env, source: RefundSource, amount: Kes | None, refund_id: str
    ) -> Reserved:
        """Reserve an amount, by default all that is left. Raises NotFound, InvalidFields or Conflict."""
        if source.payment_id is not None:
            paid = await self._payments.reserve(merchant_id, env, source.payment_id, amount, refund_id)
            return Reserved(
                amount=paid.amount,
                original_amount=paid.payment_amount,
                receipt=paid.receipt,
                is_rest=paid.left == 0,
                shortcode=paid.shortcode,
                shortcode_id=paid.shortcode_id,
            )
        money = await self._transactions.reserve(merchant_id, env, source.transaction_id or "", amount)
        return Reserved(
            amount=money.amount,
            # M-Pesa reverses whole shillings.
            original_amount=Kes(money.amount_cents // 100),
            receipt=money.receipt,
            is_rest=money.left_cents == 0,
            shortcode=money.number,
            shortcode_id=money.shortcode_id,
            allocated_to=None if money.subject is None else money.subject.kind,
        )

    async def reserve_again(self, row: Found) -> None:
        """Reserve for a failed refund that M-Pesa carried out late. Raises Conflict."""
        amount = Kes(row["amount"])
        if row["payment_id"] is None:
            await self._transactions.reserve_again(row["transaction_id"], amount)
        else:
            await self._payments.reserve(row["merchant_id"], row["env"], row["payment_id"], amount, row["refund_id"])

    async def release(self, row: Found, text: str) -> None:
        """Release the amount of a failed refund; ``text`` is the reason."""
        amount = Kes(row["amount"])
        if row["payment_id"] is None:
            await self._transactions.release(row["transaction_id"], amount)
        else:
            await self._payments.release(row["payment_id"], row["refund_id"], amount, text)

    async def complete(self, row: Found, receipt: str | None) -> None:
        """Mark the amount as refunded, and publish ``payment.reversed`` or ``transaction.refunded``."""
        amount = Kes(row["amount"])
        if row["payment_id"] is not None:
            await self._payments.reverse(row["payment_id"], row["refund_id"], amount, receipt)
            return
        money = await self._transactions.complete(
            row["merchant_id"], row["transaction_id"], row["refund_id"], amount, receipt
        )
        await self._outbox.publish([transaction_refunded(row, money, receipt)])

    async def has_come_in(self, env: Env, receipt: str) -> bool:
        """Return True if the receipt is of money in: no reversal has it."""
        return await self._payments.has_paid(env, receipt) or await self._transactions.has_come_in(env, receipt)
