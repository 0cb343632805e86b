"""Wire schemas of payments."""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.env import Environment
from mpesa_gateway.errors import PartError
from mpesa_gateway.http.field_rules import AMOUNT, PHONE, SHORTCODE, WHOLE, Rule, at_most, one_of, printable
from mpesa_gateway.http.fields import Amount, Currency, MerchantId, Phone, Provider, Receipt, id_field, named
from mpesa_gateway.http.query import Limit, Moment
from mpesa_gateway_payments.result_codes import FailureReason
from mpesa_gateway_payments.states import Cause, Status

PaymentId = Annotated[str, id_field("pay")]
CheckId = Annotated[str, id_field("chk")]
PaymentStatus = Annotated[Status, named("PaymentStatus")]


def _metadata(pairs: dict[str, str]) -> dict[str, str]:
    if len(pairs) > 20:
        raise ValueError("must hold at most 20 pairs")
    for name, value in pairs.items():
        if not 1 <= len(name) <= 40:
            raise ValueError("names take 1 to 40 characters")
        if len(value) > 500:
            raise PartError("must be at most 500 characters", part=f".{name}")
    return pairs


_METADATA = Rule(
    _metadata,
    maxProperties=20,
    propertyNames={"minLength": 1, "maxLength": 40, "pattern": r"^[^\x00]*$"},
    additionalProperties={"type": "string", "maxLength": 500, "pattern": r"^[^\x00]*$"},
    examples=[{"cart": "7"}],
)


class CreatePayment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a payment."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "amount": AMOUNT,
        "currency": one_of(["KES"], ": M-Pesa moves no other currency", title="Currency"),
        "provider": one_of(["mpesa"], title="Provider"),
        "phone": PHONE,
        "shortcode": SHORTCODE,
        "callback_url": printable(500, format="uri", description="Only with a host that the configuration allows."),
        "reference": printable(12, ": the payer sees it as the account", examples=["order 1041"]),
        "description": printable(13, examples=["Shoes"]),
        "metadata": _METADATA,
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "amount": "500.00",
        "currency": "KES",
        "provider": "mpesa",
        "phone": "254708374149",
        "reference": "order 1041",
        "metadata": {"cart": "7"},
    }

    amount: msgspec.Raw
    currency: str = "KES"
    provider: str = "mpesa"
    phone: str
    shortcode: str | None = None
    callback_url: str | None = None
    reference: str | None = None
    description: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A step in a payment's timeline, with its time and cause."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"kind": "completed", "cause": "callback", "result_code": "0", "detail": ""}

    at: datetime
    kind: str
    cause: Annotated[Cause, named("PaymentCause")]
    result_code: str | None
    detail: str


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """The money that M-Pesa reported instead of the requested amount or payer."""

    of: Annotated[Literal["amount", "phone", "receipt", "unconfirmed", "returned"], named("MismatchKind")]
    received_amount: str | None
    received_receipt: str | None


class PaymentView(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as merchants see it. ``shortcode`` is the number that the payer pays."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "shortcode": "174379",
        "refunded_amount": "0.00",
        "status": "completed",
        "provider_ref": "ws_CO_231120261015094708374149",
        "idempotency_key": "order-1041",
        "reference": "order 1041",
        "description": "Shoes",
        "result_code": "0",
        "result_desc": "The service request is processed successfully.",
        "failure_reason": None,
        "mismatch": None,
        "metadata": {"cart": "7"},
    }

    id: PaymentId
    merchant_id: MerchantId
    env: Environment
    amount: Amount
    refunded_amount: Amount
    currency: Currency
    provider: Provider
    shortcode: str
    status: PaymentStatus
    provider_ref: str | None
    idempotency_key: str
    created_at: datetime
    phone: Phone
    reference: str
    description: str
    receipt: Receipt | None
    result_code: str | None
    result_desc: str | None
    failure_reason: Annotated[FailureReason, named("FailureReason")] | None
    mismatch: Mismatch | None
    completed_at: datetime | None
    updated_at: datetime
    metadata: dict[str, str]


class PaymentWithTimeline(PaymentView, frozen=True, kw_only=True):
    """A payment with its timeline."""

    timeline: list[TimelineEntry]


class PaymentFilters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of payments; they can be combined."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "search": at_most(100),
        "min_amount": WHOLE,
        "max_amount": WHOLE,
        "phone": PHONE,
        "shortcode": SHORTCODE,
    }

    provider: Provider | None = None
    status: PaymentStatus | None = None
    since: Moment | None = None
    until: Moment | None = None
    search: str | None = None
    min_amount: Decimal | None = None
    max_amount: Decimal | None = None
    phone: str | None = None
    reference: str | None = None
    shortcode: str | None = None


class PaymentQuery(PaymentFilters, frozen=True, kw_only=True):
    """Filters and page of the list of payments. ``count`` requests ``meta.total``."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


class CheckQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shortcode that received a receipt without a payment, by default the default one."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"shortcode": SHORTCODE}

    shortcode: str | None = None


class CheckStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The acknowledgement of a status query.

    The result arrives later and changes the payment; ``check_id`` shows it.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "OriginatorConversationID": "2b1c-4f0e-9d57-6a8e21743710",
        "ConversationID": "AG_20261123_2010759fd5662ef6d054",
        "ResponseCode": "0",
        "ResponseDescription": "Accept the service request successfully.",
    }

    originator_conversation_id: str = msgspec.field(name="OriginatorConversationID")
    conversation_id: str = msgspec.field(name="ConversationID")
    response_code: str = msgspec.field(name="ResponseCode")
    response_description: str = msgspec.field(name="ResponseDescription")
    check_id: CheckId
    payment_id: PaymentId | None
    env: Environment


CheckFinding = Literal[
    "recovered",
    "already_known",
    "failed",
    "mismatched",
    "reversed",
    "pending",
    "not_found",
    "not_ours",
    "ambiguous",
    "contradicted",
    "unanswered",
]


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    """A status query with its result.

    ``state`` is sending, asked, unsent, refused, unknown, answered or timed_out. ``finding`` is recovered,
    already_known, failed, mismatched, reversed, pending, not_found, not_ours, ambiguous, contradicted or unanswered.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "state": "answered",
        "transaction_status": "Completed",
        "result_code": "0",
        "result_desc": "The service request is processed successfully.",
    }

    check_id: CheckId
    env: Environment
    payment_id: PaymentId | None
    receipt: Receipt | None
    state: Literal["sending", "asked", "unsent", "refused", "unknown", "answered", "timed_out"]
    transaction_status: str | None
    finding: Annotated[CheckFinding, named("CheckFinding")] | None
    result_code: str | None
    result_desc: str | None
    created_at: datetime
    finished_at: datetime | None
