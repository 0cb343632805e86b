"""Events of refunds."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.fields import example_id
from mpesa_gateway_callbacks.events import QueryResulted
from mpesa_gateway_refunds.result_codes import REVERSAL_RESULTS


class RefundFailed(PublicEvent, frozen=True, kw_only=True):
    """M-Pesa sent no money back. ``outcome`` is a stable word, ``advice`` the merchant's next step."""

    kind: ClassVar[str] = "refund.failed"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "refund_id": example_id("rfd"),
        "payment_id": example_id("pay"),
        "amount": "200.00",
        "currency": "KES",
        "provider": "mpesa",
        "status": "failed",
        "outcome": REVERSAL_RESULTS["1"].word,
        "advice": REVERSAL_RESULTS["1"].advice,
        "result_code": "1",
        "result_desc": "The balance is insufficient for the transaction.",
    }

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


class ReversalResulted(QueryResulted, frozen=True, kw_only=True):
    """The result of a reversal; ``receipt`` is the reversed payment's."""

    kind: ClassVar[str] = "callback.reversal_resulted"

    reversal_receipt: str | None = None
    receipt: str | None = None
