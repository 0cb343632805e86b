"""What happened to a refund, for merchants, hosts and other plugins."""

from typing import Any, ClassVar

from mpesa_gateway.events import PublicEvent


class RefundFailed(PublicEvent, frozen=True, kw_only=True):
    """M-Pesa sent no money back. ``outcome`` is a stable word, ``advice`` says what the merchant can do."""

    kind: ClassVar[str] = "refund.failed"

    refund_id: str
    payment_id: str
    amount: str
    currency: str
    provider: str
    status: str
    outcome: str
    advice: str
    result_code: str | None
    result_desc: str | None

    def data(self) -> dict[str, Any]:
        """What merchants get to see."""
        return {
            "refund_id": self.refund_id,
            "payment_id": self.payment_id,
            "merchant_id": self.merchant_id,
            "amount": self.amount,
            "currency": self.currency,
            "provider": self.provider,
            "status": self.status,
            "outcome": self.outcome,
            "advice": self.advice,
            "result_code": self.result_code,
            "result_desc": self.result_desc,
        }
