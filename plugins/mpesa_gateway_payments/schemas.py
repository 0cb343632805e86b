"""Payments as they go over the wire."""

from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from mpesa_gateway.http.query import ListQuery
from mpesa_gateway_payments.states import Status


class CreatePayment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payment that a merchant wants."""

    amount: Decimal
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


class PaymentQuery(ListQuery, frozen=True, kw_only=True):
    """The filters of the list of payments; each alone or together."""

    provider: Literal["mpesa"] | None = None
    status: Status | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None
    min_amount: Decimal | None = None
    max_amount: Decimal | None = None
    phone: str | None = None
    reference: str | None = None
