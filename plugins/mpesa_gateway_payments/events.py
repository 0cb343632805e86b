"""Events of payments, for merchants, hosts and other plugins."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal

from mpesa_gateway.daraja.callbacks import CallbackEvent
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.fields import example_id
from mpesa_gateway.money import Kes
from mpesa_gateway_callbacks.events import QueryResulted
from mpesa_gateway_payments.references import own_reference
from mpesa_gateway_payments.result_codes import SUCCESS_TEXT


class PaymentEvent(PublicEvent, frozen=True, kw_only=True):
    """A payment at the time of the event. Money is a decimal string in KES, times are RFC 3339 in UTC."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "payment_id": example_id("pay"),
        "amount": "500.00",
        "currency": "KES",
        "provider": "mpesa",
        "shortcode": "174379",
        "status": "completed",
        "phone": "254708374149",
        "reference": "order 1041",
        "receipt": "TKN4A1B2C3",
        "provider_ref": "ws_CO_231120261015094708374149",
        "result_code": "0",
        "result_desc": "The service request is processed successfully.",
        "failure_reason": None,
        "metadata": {"cart": "7"},
        "created_at": "2026-11-23T10:15:09.120000Z",
        "completed_at": "2026-11-23T10:15:12.000000Z",
    }

    CONSTANTS: ClassVar[frozenset[str]] = frozenset({"KES", "mpesa", "completed", "failed", "0", SUCCESS_TEXT})

    payment_id: str
    amount: str
    currency: str
    provider: str
    shortcode: str
    status: str
    phone: str
    reference: str
    receipt: str | None
    provider_ref: str | None
    result_code: str | None
    result_desc: str | None
    failure_reason: str | None
    metadata: dict[str, str]
    created_at: str
    completed_at: str | None

    @property
    def has_own_reference(self) -> bool:
        """True if the gateway made the reference: it is no account number."""
        return self.reference == own_reference(self.payment_id)

    def data(self) -> dict[str, Any]:
        return {
            "payment_id": self.payment_id,
            "merchant_id": self.merchant_id,
            "amount": self.amount,
            "currency": self.currency,
            "provider": self.provider,
            "shortcode": self.shortcode,
            "status": self.status,
            "phone": self.phone,
            "reference": self.reference,
            "receipt": self.receipt,
            "provider_ref": self.provider_ref,
            "result_code": self.result_code,
            "result_desc": self.result_desc,
            "failure_reason": self.failure_reason,
            "metadata": self.metadata,
            "created_at": self.created_at,
            "completed_at": self.completed_at,
        }


class PaymentCompleted(PaymentEvent, frozen=True, kw_only=True):
    """The money has moved.

    ``previously_received`` is true if ``transaction.received`` announced the receipt before: credit it once.
    """

    kind: ClassVar[str] = "payment.completed"
    reports_money: ClassVar[bool] = True
    EXAMPLE: ClassVar[Mapping[str, Any]] = {**PaymentEvent.EXAMPLE, "previously_received": False}

    previously_received: bool = False

    def data(self) -> dict[str, Any]:
        return super().data() | {"previously_received": self.previously_received}


class PaymentFailed(PaymentEvent, frozen=True, kw_only=True):
    """The payer did not pay, or the prompt was not sent."""

    kind: ClassVar[str] = "payment.failed"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **PaymentEvent.EXAMPLE,
        "status": "failed",
        "receipt": None,
        "result_code": "1032",
        "result_desc": "Request cancelled by user",
        "failure_reason": "cancelled_by_user",
        "completed_at": None,
    }


class PaymentReversed(PaymentEvent, frozen=True, kw_only=True):
    """Money was returned to the payer: ``refund_amount`` now, ``refunded_amount`` in total.

    ``origin`` is ``refund`` for the merchant's refund, and ``mpesa`` if M-Pesa reports a reversal that was not
    requested here. Then ``refund_id`` is null, and so is ``refund_amount`` if M-Pesa reversed an unknown part.
    """

    kind: ClassVar[str] = "payment.reversed"
    reports_money: ClassVar[bool] = True
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **PaymentEvent.EXAMPLE,
        "status": "partially_reversed",
        "refund_id": example_id("rfd"),
        "refund_amount": "200.00",
        "refunded_amount": "200.00",
        "reversal_receipt": "TKN4D5E6F7",
        "origin": "refund",
    }

    refund_id: str | None
    refund_amount: str | None
    refunded_amount: str
    reversal_receipt: str | None
    origin: Literal["refund", "mpesa"] = "refund"

    def data(self) -> dict[str, Any]:
        return super().data() | {
            "refund_id": self.refund_id,
            "refund_amount": self.refund_amount,
            "refunded_amount": self.refunded_amount,
            "reversal_receipt": self.reversal_receipt,
            "origin": self.origin,
        }


class PaymentMismatched(PaymentEvent, frozen=True, kw_only=True):
    """M-Pesa reports money that differs from the request: it needs review. ``mismatch`` names the difference."""

    kind: ClassVar[str] = "payment.mismatched"
    reports_money: ClassVar[bool] = True
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **PaymentEvent.EXAMPLE,
        "status": "pending",
        "receipt": None,
        "result_code": None,
        "result_desc": None,
        "completed_at": None,
        "mismatch": "amount",
        "received_amount": "50.00",
        "received_receipt": "TKN4A1B2C3",
    }

    mismatch: str
    received_amount: str | None
    received_receipt: str | None

    def data(self) -> dict[str, Any]:
        return super().data() | {
            "mismatch": self.mismatch,
            "received_amount": self.received_amount,
            "received_receipt": self.received_receipt,
        }


class StkResulted(CallbackEvent, frozen=True, kw_only=True):
    """The outcome of an STK push.

    ``amount`` is in KES, None if absent or unreadable (``amount_text`` is the original). ``phone`` is as received:
    whole, masked, or None.
    """

    kind: ClassVar[str] = "callback.stk_resulted"

    checkout_request_id: str | None
    merchant_request_id: str | None
    amount: Kes | None
    amount_text: str | None
    receipt: str | None
    phone: str | None
    paid_at: datetime | None
    is_receipt_unread: bool = False


class StatusResulted(QueryResulted, frozen=True, kw_only=True):
    """The result of a status query: ``result_code`` is the query's, ``transaction_status`` the money's.

    ``payers`` are the debit parties in Daraja's form, ``2547… - JANE DOE``; ``payees`` the credit parties.
    ``money_conversation_id`` is the OriginatorConversationID of the request that moved the money.
    """

    kind: ClassVar[str] = "callback.status_resulted"

    transaction_status: str | None = None
    receipt: str | None = None
    payers: tuple[str, ...] = ()
    payees: tuple[str, ...] = ()
    money_conversation_id: str | None = None
    finished_at: datetime | None = None
