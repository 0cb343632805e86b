"""Events of c2b."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from mpesa_gateway.daraja.callbacks import CallbackEvent
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.fields import example_id


class C2bConfirmed(CallbackEvent, frozen=True, kw_only=True):
    """Safaricom's confirmation of a payment to a receiver; ``subject_id`` is the receiver of the address.

    ``number`` is as stated: the receiver's, or that of its store. ``payer_digest`` is in hexadecimal digits.
    """

    kind: ClassVar[str] = "c2b.confirmed"

    receipt: str
    number: str
    amount_cents: int
    account_number: str | None
    payer: str | None
    payer_digest: str | None
    payer_name: str | None
    paid_at: datetime | None
    transaction_type: str | None


class AccountEvent(PublicEvent, frozen=True, kw_only=True):
    """An account number whose received sum has reached another state.

    ``amount`` is the money that caused it, negative for a refund; null if the expected amount was changed.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "account_id": example_id("acc"),
        "account_number": "HOUSE 7",
        "shortcode": "600638",
        "currency": "KES",
        "expected": "12000.00",
        "received": "4000.00",
        "outstanding": "8000.00",
        "amount": "4000.00",
    }

    account_id: str
    account_number: str
    shortcode: str
    currency: str = "KES"
    expected: str
    received: str
    outstanding: str
    amount: str | None

    def data(self) -> dict[str, Any]:
        return {
            "account_id": self.account_id,
            "merchant_id": self.merchant_id,
            "account_number": self.account_number,
            "shortcode": self.shortcode,
            "currency": self.currency,
            "expected": self.expected,
            "received": self.received,
            "outstanding": self.outstanding,
            "amount": self.amount,
        }


class AccountPartPaid(AccountEvent, frozen=True, kw_only=True):
    """A part of the expected amount has been received."""

    kind: ClassVar[str] = "account.part_paid"


class AccountPaid(AccountEvent, frozen=True, kw_only=True):
    """The expected amount has been received."""

    kind: ClassVar[str] = "account.paid"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **AccountEvent.EXAMPLE,
        "received": "12000.00",
        "outstanding": "0.00",
        "amount": "8000.00",
    }


class AccountOverpaid(AccountEvent, frozen=True, kw_only=True):
    """More than the expected amount has been received."""

    kind: ClassVar[str] = "account.overpaid"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **AccountEvent.EXAMPLE,
        "received": "13000.00",
        "outstanding": "0.00",
        "amount": "9000.00",
    }
