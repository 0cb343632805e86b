"""Requests and responses of the refunds API."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.env import Environment
from mpesa_gateway.http.field_rules import AMOUNT, Rule, at_most
from mpesa_gateway.http.fields import (
    Amount,
    Currency,
    MerchantId,
    Provider,
    Receipt,
    example_id,
    id_field,
    named,
)
from mpesa_gateway.http.query import Limit, Moment
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.api import PaymentId
from mpesa_gateway_refunds.result_codes import ReversalWord
from mpesa_gateway_transactions.api import TransactionId

RefundId = Annotated[str, id_field("rfd")]

_LONGEST_REASON = 90
"""Characters of a reason. Daraja's remarks have 2 to 100."""

_LONGEST_NOTE = 500


def _reason(text: str) -> str:
    if not 2 <= len(text.strip()) <= _LONGEST_REASON or not text.isascii() or not text.isprintable():
        raise ValueError(
            f"must be 2 to {_LONGEST_REASON} printable ASCII characters: M-Pesa keeps it with the reversal"
        )
    return text


_REASON = Rule(
    _reason,
    # At least two characters that are not spaces at an end.
    pattern=r"^(?=\s*\S.*\S)[ -~]{2,90}$",
    examples=["ordered twice"],
)

_ALL = msgspec.Raw(b"null")
"""No amount: the whole remaining amount."""


def read_amount(raw: msgspec.Raw) -> Kes | None:
    """Return the amount of a body; None for the whole remaining amount. Raises InvalidAmount."""
    return None if bytes(raw) == bytes(_ALL) else Kes.parse_json(bytes(raw))


RefundStatus = Annotated[Literal["pending", "completed", "failed"], named("RefundStatus")]


class CreateRefund(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A requested refund of a payment, or of a transaction that pays none; without ``amount``, of all that is left."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "amount": Rule(
            read_amount,
            anyOf=[*AMOUNT.schema["anyOf"], {"type": "null"}],
            description="Whole KES; the whole remaining amount if omitted.",
            examples=["500.00"],
        ),
        "reason": _REASON,
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "payment_id": example_id("pay"),
        "amount": "500.00",
        "reason": "ordered twice",
    }

    payment_id: str | None = None
    transaction_id: str | None = None
    amount: msgspec.Raw = msgspec.field(default_factory=lambda: _ALL)
    reason: str | None = None


class RefundView(msgspec.Struct, frozen=True, kw_only=True):
    """A refund of a payment or transaction, sent by the ``shortcode`` that was paid; the other id is null.

    ``outcome`` is a stable word for the result, ``advice`` the next step after a failure. ``attention`` is the reason
    for a review: M-Pesa has reported no result, or a contradictory one.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "shortcode": "174379",
        "status": "completed",
        "reason": "returned goods",
        "reversal_receipt": "TKN5B2C3D4",
        "provider_ref": "AG_20261123_2010759fd5662ef6d054",
        "outcome": "reversed",
        "advice": None,
        "transaction_id": None,
        "result_code": "0",
        "result_desc": "The service request is processed successfully.",
        "attention": None,
    }

    id: RefundId
    merchant_id: MerchantId
    env: Environment
    payment_id: PaymentId | None
    transaction_id: TransactionId | None
    amount: Amount
    currency: Currency
    provider: Provider
    shortcode: str | None
    status: RefundStatus
    reason: str
    receipt: Receipt
    reversal_receipt: str | None
    provider_ref: str | None
    outcome: Annotated[ReversalWord, named("RefundOutcome")] | None
    advice: str | None
    result_code: str | None
    result_desc: str | None
    attention: str | None
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None


class RefundFilters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of refunds."""

    payment_id: str | None = None
    transaction_id: str | None = None
    shortcode: str | None = None
    status: RefundStatus | None = None
    since: Moment | None = None
    until: Moment | None = None
    needs_attention: bool | None = None


class RefundQuery(RefundFilters, frozen=True, kw_only=True):
    """Filters and position of a list of refunds; ``count`` adds ``meta.total``."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


class Resolution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's decision on a refund that needs review. ``confirm`` repeats the refund's id."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"note": at_most(_LONGEST_NOTE)}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "outcome": "completed",
        "confirm": example_id("rfd"),
        "note": "the portal shows the reversal",
    }

    outcome: Literal["completed", "failed"]
    confirm: str
    note: str
