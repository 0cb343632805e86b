"""Payments as they go over the wire."""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal

import msgspec

from mpesa_gateway.http.query import Limit, Moment
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments.states import Status


def _only(word: str, why: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text != word:
            raise ValueError(f"must be {word}{why}")
        return text

    return check


def _printable(most: int, why: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not 1 <= len(text) <= most or not text.isascii() or not text.isprintable():
            raise ValueError(f"must be 1 to {most} printable ASCII characters{why}")
        return text

    return check


def _metadata(pairs: dict[str, str]) -> dict[str, str]:
    if len(pairs) > 20:
        raise ValueError("must hold at most 20 pairs")
    for name, value in pairs.items():
        if not 1 <= len(name) <= 40 or len(value) > 500 or "\x00" in name + value:
            raise ValueError("keys take 1 to 40 characters and values up to 500, none of them NUL")
    return pairs


class CreatePayment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payment that a merchant wants."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "amount": Kes.parse_json,
        "currency": _only("KES", ": M-Pesa moves no other currency"),
        "provider": _only("mpesa", ""),
        "phone": Msisdn.parse,
        "callback_url": _printable(500, ""),
        "reference": _printable(12, ": the payer sees it as the account"),
        "description": _printable(13, ""),
        "metadata": _metadata,
    }

    amount: msgspec.Raw
    currency: str = "KES"
    provider: str = "mpesa"
    phone: str
    callback_url: str | None = None
    reference: str | None = None
    description: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a payment, with its time and what caused it."""

    at: datetime
    kind: str
    cause: str
    result_code: str | None
    detail: str


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """What M-Pesa reported instead of what was asked for."""

    of: str
    received_amount: str | None
    received_receipt: str | None


class PaymentView(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as merchants see it."""

    id: str
    merchant_id: str
    amount: str
    refunded_amount: str
    currency: str
    provider: str
    status: str
    provider_ref: str | None
    idempotency_key: str
    created_at: datetime
    phone: str
    reference: str
    description: str
    receipt: str | None
    result_code: str | None
    result_desc: str | None
    failure_reason: str | None
    mismatch: Mismatch | None
    completed_at: datetime | None
    updated_at: datetime
    metadata: dict[str, str]


class PaymentWithTimeline(PaymentView, frozen=True, kw_only=True):
    """A payment and everything that has happened to it."""

    timeline: list[TimelineEntry]


class PaymentFilters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What payments can be filtered by, each alone or together."""

    provider: Literal["mpesa"] | None = None
    status: Status | None = None
    since: Moment | None = None
    until: Moment | None = None
    search: str | None = None
    min_amount: Decimal | None = None
    max_amount: Decimal | None = None
    phone: str | None = None
    reference: str | None = None


class PaymentQuery(PaymentFilters, frozen=True, kw_only=True):
    """The filters of the list of payments, and where in it to look. ``count`` asks for ``meta.total``."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


class CheckStarted(msgspec.Struct, frozen=True, kw_only=True):
    """Daraja took the question. The answer follows by itself and changes the payment; ``check_id`` shows it."""

    originator_conversation_id: str = msgspec.field(name="OriginatorConversationID")
    conversation_id: str = msgspec.field(name="ConversationID")
    response_code: str = msgspec.field(name="ResponseCode")
    response_description: str = msgspec.field(name="ResponseDescription")
    check_id: str
    payment_id: str | None


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    """A status check and what became of it.

    ``state`` is sending, asked, unsent, refused, unknown, answered or timed_out; ``finding`` what the answer meant:
    recovered, already_known, failed, mismatched, reversed, pending, not_found, not_ours, ambiguous, contradicted or
    unanswered.
    """

    check_id: str
    payment_id: str | None
    receipt: str | None
    state: str
    transaction_status: str | None
    finding: str | None
    result_code: str | None
    result_desc: str | None
    created_at: datetime
    finished_at: datetime | None
