"""Events of transactions, for merchants, hosts and other plugins."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.fields import example_id


class TransactionEvent(PublicEvent, frozen=True, kw_only=True):
    """Money in at the time of the event. Money is a decimal string in KES, times are RFC 3339 in UTC."""

    reports_money: ClassVar[bool] = True
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "transaction_id": example_id("txn"),
        "shortcode": "174379",
        "money_kind": "c2b",
        "amount": "500.00",
        "currency": "KES",
        "receipt": "TKN4A1B2C3",
        "account_number": "ORDER 1041",
        "payer": {"phone": "2547*****149", "name": "JOHN"},
        "paid_at": "2026-11-23T10:15:12.000000Z",
    }

    transaction_id: str
    shortcode: str
    money_kind: str
    amount: str | None
    currency: str = "KES"
    receipt: str
    account_number: str | None
    payer: dict[str, str | None]
    paid_at: str

    def data(self) -> dict[str, Any]:
        return {
            "transaction_id": self.transaction_id,
            "merchant_id": self.merchant_id,
            "shortcode": self.shortcode,
            "kind": self.money_kind,
            "amount": self.amount,
            "currency": self.currency,
            "receipt": self.receipt,
            "account_number": self.account_number,
            "payer": self.payer,
            "paid_at": self.paid_at,
        }


class TransactionReceived(TransactionEvent, frozen=True, kw_only=True):
    """Money in that names no payment."""

    kind: ClassVar[str] = "transaction.received"


class TransactionReversed(TransactionEvent, frozen=True, kw_only=True):
    """M-Pesa returned money that paid no payment, without a refund of the gateway, such as on Safaricom's portal.

    ``reversed`` is ``whole`` or ``part``. ``refund_amount`` was returned now, null if M-Pesa states no readable part;
    ``refunded_amount`` in total, as far as known. ``allocated_to`` is the money's subject, such as an account number.
    """

    kind: ClassVar[str] = "transaction.reversed"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **TransactionEvent.EXAMPLE,
        "allocated_to": {"type": "account_number", "id": example_id("acc")},
        "reversed": "whole",
        "refund_amount": "500.00",
        "refunded_amount": "500.00",
        "reversal_receipt": "TKN4D5E6F7",
        "origin": "mpesa",
    }

    allocated_to: dict[str, str] | None
    reversed: Literal["whole", "part"]
    refund_amount: str | None
    refunded_amount: str
    reversal_receipt: str | None
    origin: str = "mpesa"

    def data(self) -> dict[str, Any]:
        return super().data() | {
            "allocated_to": self.allocated_to,
            "reversed": self.reversed,
            "refund_amount": self.refund_amount,
            "refunded_amount": self.refunded_amount,
            "reversal_receipt": self.reversal_receipt,
            "origin": self.origin,
        }


class TransactionAllocated(TransactionEvent, frozen=True, kw_only=True):
    """A rule or a person decided what the money is for."""

    kind: ClassVar[str] = "transaction.allocated"
    reports_money: ClassVar[bool] = False
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **TransactionEvent.EXAMPLE,
        "allocated_to": {"type": "payment", "id": example_id("pay")},
        "note": None,
    }

    allocated_to: dict[str, str]
    note: str | None = None

    def data(self) -> dict[str, Any]:
        return super().data() | {"allocated_to": self.allocated_to, "note": self.note}
