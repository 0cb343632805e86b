"""Events of refunds."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mpesa_gateway.db.engine import Found
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.fields import example_id
from mpesa_gateway.money import cents_text
from mpesa_gateway_callbacks.events import QueryResulted
from mpesa_gateway_refunds.result_codes import REVERSAL_RESULTS
from mpesa_gateway_transactions.api import RefundedMoney


class RefundFailed(PublicEvent, frozen=True, kw_only=True):
    """M-Pesa sent no money back. ``outcome`` is a stable word, ``advice`` the merchant's next step.

    The refund is of a payment or of a transaction; the other id is null.
    """

    kind: ClassVar[str] = "refund.failed"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "refund_id": example_id("rfd"),
        "payment_id": example_id("pay"),
        "transaction_id": None,
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
    payment_id: str | None
    transaction_id: str | None
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
            "transaction_id": self.transaction_id,
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


class TransactionRefunded(PublicEvent, frozen=True, kw_only=True):
    """Money that paid no payment was returned to the payer: ``refund_amount`` now, ``refunded_amount`` in total.

    ``amount`` is the transaction's. ``allocated_to`` is its subject, such as an account number.
    """

    kind: ClassVar[str] = "transaction.refunded"
    reports_money: ClassVar[bool] = True
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "transaction_id": example_id("txn"),
        "shortcode": "174379",
        "amount": "500.00",
        "currency": "KES",
        "provider": "mpesa",
        "receipt": "TKN4A1B2C3",
        "account_number": "RENT 4B",
        "allocated_to": None,
        "refund_id": example_id("rfd"),
        "refund_amount": "200.00",
        "refunded_amount": "200.00",
        "reversal_receipt": "TKN4D5E6F7",
    }

    transaction_id: str
    shortcode: str
    amount: str
    currency: str
    provider: str
    receipt: str
    account_number: str | None
    allocated_to: dict[str, str] | None
    refund_id: str
    refund_amount: str
    refunded_amount: str
    reversal_receipt: str | None

    def data(self) -> dict[str, Any]:
        return {
            "transaction_id": self.transaction_id,
            "merchant_id": self.merchant_id,
            "shortcode": self.shortcode,
            "amount": self.amount,
            "currency": self.currency,
            "provider": self.provider,
            "receipt": self.receipt,
            "account_number": self.account_number,
            "allocated_to": self.allocated_to,
            "refund_id": self.refund_id,
            "refund_amount": self.refund_amount,
            "refunded_amount": self.refunded_amount,
            "reversal_receipt": self.reversal_receipt,
        }


def transaction_refunded(row: Found, money: RefundedMoney, receipt: str | None) -> TransactionRefunded:
    """``row`` is the refund, ``receipt`` the reversal's."""
    subject = money.subject
    return TransactionRefunded(
        merchant_id=row["merchant_id"],
        env=row["env"],
        subject_id=money.transaction_id,
        transaction_id=money.transaction_id,
        shortcode=money.number,
        amount=cents_text(money.amount_cents),
        currency="KES",
        provider="mpesa",
        receipt=money.receipt,
        account_number=money.account_number,
        allocated_to=None if subject is None else {"type": subject.kind, "id": subject.subject_id},
        refund_id=row["refund_id"],
        refund_amount=cents_text(money.refund_cents),
        refunded_amount=cents_text(money.refunded_cents),
        reversal_receipt=receipt,
    )


class ReversalResulted(QueryResulted, frozen=True, kw_only=True):
    """The result of a reversal; ``receipt`` is the reversed payment's."""

    kind: ClassVar[str] = "callback.reversal_resulted"

    reversal_receipt: str | None = None
    receipt: str | None = None
