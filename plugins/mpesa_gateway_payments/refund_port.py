"""The port through which the refunds plugin changes payments."""

from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.money import Kes
from mpesa_gateway_payments import statement_matching_sql
from mpesa_gateway_payments.api import Refundable
from mpesa_gateway_payments.transitions import Reversal, Transitions


class PaymentRefunds:
    """Implements ``RefundablePayments``."""

    def __init__(self, *, db: Database, transitions: Transitions) -> None:
        self._db = db
        self._transitions = transitions

    async def has_paid(self, env: Env, receipt: str) -> bool:
        return bool(await self._db.fetch(statement_matching_sql.RECEIPTS_KNOWN, env, [receipt]))

    async def reserve(
        self, merchant_id: str, env: Env, payment_id: str, amount: Kes | None, refund_id: str
    ) -> Refundable:
        row, reserved = await self._transitions.reserve(merchant_id, env, payment_id, amount, refund_id)
        return Refundable(
            payment_id=payment_id,
            env=row["env"],
            shortcode_id=row["shortcode_id"],
            shortcode=row["shortcode"],
            amount=reserved,
            payment_amount=Kes(row["amount"]),
            receipt=row["receipt"],
            left=row["amount"] - row["refunded"] - row["refund_reserved"],
        )

    async def release(self, payment_id: str, refund_id: str, amount: Kes, text: str) -> None:
        await self._transitions.release(payment_id, Reversal(refund_id, amount, None), text)

    async def reverse(self, payment_id: str, refund_id: str, amount: Kes, receipt: str | None) -> None:
        await self._transitions.reverse(payment_id, Reversal(refund_id, amount, receipt))
