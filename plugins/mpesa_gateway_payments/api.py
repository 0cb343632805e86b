"""The public API of payments for other plugins and hosts."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments.evidence import (
    CLOCKS_DIFFER,
    Direction,
    Evidence,
    Proof,
    Receiver,
    Source,
    Zone,
    in_zone,
    is_negative,
    possible_times,
    proven_zone,
    read_amount,
    read_direction,
    read_kind,
    without_sign,
)
from mpesa_gateway_payments.matching import SHOWN_FOR
from mpesa_gateway_payments.operations import TRANSACTION_STATUS, TransactionStatus
from mpesa_gateway_payments.result_codes import TransactionState, transaction_state
from mpesa_gateway_payments.schemas import CheckStarted, PaymentId, PaymentView, PaymentWithTimeline
from mpesa_gateway_payments.verdicts import (
    AlreadyKnown,
    Ambiguous,
    Mismatch,
    NeedsQuery,
    NotAssignable,
    PaidBy,
    Transaction,
    Verdict,
)

__all__ = [
    "CLOCKS_DIFFER",
    "SHOWN_FOR",
    "TRANSACTION_STATUS",
    "AlreadyKnown",
    "Ambiguous",
    "CheckStarted",
    "Direction",
    "Evidence",
    "Finding",
    "Lock",
    "Mismatch",
    "NeedsQuery",
    "NotAssignable",
    "PaidBy",
    "PaymentId",
    "PaymentRequest",
    "PaymentView",
    "PaymentWithTimeline",
    "Payments",
    "Proof",
    "Receiver",
    "Refundable",
    "RefundablePayments",
    "Requested",
    "Settled",
    "Similar",
    "Source",
    "StatementMatching",
    "StatusQueries",
    "Transaction",
    "TransactionState",
    "TransactionStatus",
    "UnallocatedMoney",
    "Verdict",
    "WantedMoney",
    "Zone",
    "in_zone",
    "is_negative",
    "possible_times",
    "proven_zone",
    "read_amount",
    "read_direction",
    "read_kind",
    "transaction_state",
    "without_sign",
]


@dataclass(frozen=True, kw_only=True)
class PaymentRequest:
    """A request for a payment. ``amount`` is in KES, ``reference`` up to 12 characters, ``description`` 13.

    ``shortcode`` is the number that the payer pays; None for the merchant's default one.
    """

    amount: Kes
    phone: Msisdn
    shortcode: str | None = None
    reference: str | None = None
    description: str | None = None
    callback_url: str | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Similar:
    """Facts about money, if known: KES, a whole ``2547…``, an account number."""

    amount: int | None
    phone: str | None
    reference: str | None
    before: datetime
    """Time of the money."""


@dataclass(frozen=True)
class Requested:
    """``is_replay``: an earlier request with the same key created the payment."""

    payment: PaymentView
    is_replay: bool


Finding = Literal["already_known", "recovered", "not_found", "mismatched", "ambiguous"]


@dataclass(frozen=True)
class Settled:
    """The result of a report.

    ``payment_id`` and ``merchant_id`` are of the payment that has the money, or contradicts it. An ambiguous report has
    ``candidates``; ``asks``: a status query may help.
    """

    finding: Finding
    payment_id: str | None = None
    merchant_id: str | None = None
    candidates: tuple[str, ...] = ()
    asks: bool = False


@dataclass(frozen=True, kw_only=True)
class WantedMoney:
    """A receiver's ``number`` and an ``amount`` in KES to look for.

    Payments created between ``since`` and ``until`` (UTC) are candidates; the matching rule starts at ``likely``.
    """

    number: str
    amount: int
    since: datetime
    likely: datetime
    until: datetime


class UnallocatedMoney(Protocol):
    """Finds incoming money without a payment; provided by the plugin with the statements."""

    async def find(self, env: str, wanted: Sequence[WantedMoney]) -> Sequence[Transaction]:
        """Return the money since ``likely``, each receipt once."""
        ...


Lock: TypeAlias = Callable[[], Awaitable[None]]
"""Locks the row that stores a report."""


async def lock_nothing() -> None:
    """For a report without a row of its own."""


class StatementMatching(Protocol):
    """Matches money to payments and completes them.

    ``lock`` is awaited after the payment is locked and before any write, so that all paths lock in one order.
    """

    async def judge(self, reports: Sequence[Evidence]) -> Sequence[Verdict]:
        """Return the verdict on each report, without locks."""
        ...

    async def apply(self, report: Evidence, lock: Lock = lock_nothing) -> Settled:
        """Judge a report, lock its payment, judge again and write the result.

        Needs an open transaction. The payment may belong to another merchant of the receiver.
        """
        ...

    async def withdraw(self, report: Evidence, receipts: Sequence[str], lock: Lock = lock_nothing) -> Settled:
        """Record a reversal on a statement that names the receipt of a payment's money.

        Needs an open transaction. ``report.receipt`` is the reversal's own. Returns ``already_known`` with the payment,
        also for a repeated report; ``not_found`` if no payment of the receiver has one of ``receipts``, or a pending
        refund of ours may be meant.
        """
        ...

    async def record_reversed(self, receiver: Receiver, receipt: str, state: TransactionState) -> None:
        """Record that M-Pesa reports the money of a receipt as reversed, in the open transaction.

        After commit the payment or other money with the receipt is reversed, as soon as it is known.
        """
        ...

    async def assign(
        self, report: Evidence, payment_id: str, lock: Lock = lock_nothing, *, by_operator: bool = False
    ) -> Settled | NotAssignable:
        """Assign money to a payment that a person chose, or return the reason against it.

        Needs an open transaction. A merchant's choice must fit the report; an operator decides. Raises NotFound.
        """
        ...


class StatusQueries(Protocol):
    """Sends transaction status queries."""

    async def ask(self, merchant_id: str, env: Env, subject: str, *, reference: str | None = None) -> CheckStarted:
        """Query a receipt or a payment id; the result changes the payment later.

        The result never shows the money's ``reference``: pass it to exclude payments with another one. Raises
        InvalidFields, NotFound, Conflict, ProviderNotConfigured, ProviderRejected or ProviderUnavailable.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Refundable:
    """A payment with ``amount`` KES reserved; ``left`` KES are neither refunded nor reserved."""

    payment_id: str
    env: Env
    shortcode_id: str
    shortcode: str
    amount: Kes
    payment_amount: Kes
    receipt: str
    left: int


class RefundablePayments(Protocol):
    """Changes payments for refunds. Each call needs an open transaction."""

    async def reserve(
        self, merchant_id: str, env: Env, payment_id: str, amount: Kes | None, refund_id: str
    ) -> Refundable:
        """Reserve an amount, by default all that is left.

        Raises NotFound, or Conflict if the payment is unpaid, has no receipt or has less left.
        """
        ...

    async def has_paid(self, env: Env, receipt: str) -> bool:
        """Return True if the receipt is of money that paid for any merchant's payment."""
        ...

    async def release(self, payment_id: str, refund_id: str, amount: Kes, text: str) -> None: ...

    async def reverse(self, payment_id: str, refund_id: str, amount: Kes, receipt: str | None) -> None:
        """Mark a reserved amount as refunded."""
        ...


class Payments(Protocol):
    """Creates payments and reads them."""

    async def request(self, merchant_id: str, env: Env, request: PaymentRequest, *, idempotency_key: str) -> Requested:
        """Create a payment at the requested shortcode of the merchant: one STK push for each key.

        A key belongs to (merchant, env). Raises ProviderNotConfigured, KeyMismatch, KeyInProgress, ProviderRejected,
        Conflict if the merchant is deactivated, the shortcode is another merchant's or the key's payment is of a
        retired one, and ProviderUnavailable if nothing was sent and the key can be retried.
        """
        ...

    async def get(self, merchant_id: str, env: Env, payment_id: str) -> PaymentWithTimeline:
        """Raises NotFound."""
        ...

    async def shortcode_of(self, merchant_id: str, env: Env, payment_id: str) -> str:
        """Return the id of the payment's shortcode. Raises NotFound."""
        ...

    async def find(self, payment_id: str) -> PaymentView | None:
        """Return a payment of any merchant, for operators."""
        ...

    async def find_similar(self, merchant_id: str, env: Env, wanted: Similar) -> list[PaymentView]:
        """Return at most 10 unpaid payments of the previous 48 hours with the amount, payer or reference."""
        ...
