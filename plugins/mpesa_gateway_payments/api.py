"""What other plugins and hosts may ask of payments."""

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
    possible,
    proven_zone,
    read_amount,
    read_direction,
    read_kind,
    read_unsigned,
)
from mpesa_gateway_payments.operations import TRANSACTION_STATUS, TransactionStatus
from mpesa_gateway_payments.result_codes import TransactionState, transaction_state
from mpesa_gateway_payments.schemas import CheckStarted, PaymentId, PaymentView, PaymentWithTimeline
from mpesa_gateway_payments.verdicts import (
    AlreadyKnown,
    Ambiguous,
    Ask,
    Mismatch,
    NotAssignable,
    PaidBy,
    Transaction,
    Verdict,
)

__all__ = [
    "CLOCKS_DIFFER",
    "TRANSACTION_STATUS",
    "AlreadyKnown",
    "Ambiguous",
    "Ask",
    "CheckStarted",
    "Direction",
    "Evidence",
    "Finding",
    "Lock",
    "Mismatch",
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
    "possible",
    "proven_zone",
    "read_amount",
    "read_direction",
    "read_kind",
    "read_unsigned",
    "transaction_state",
]


@dataclass(frozen=True, kw_only=True)
class PaymentRequest:
    """A payment that a merchant wants: ``amount`` in KES; ``reference`` up to 12 characters, ``description`` 13."""

    amount: Kes
    phone: Msisdn
    reference: str | None = None
    description: str | None = None
    callback_url: str | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Similar:
    """Money that a payment is wanted for: KES, a whole ``2547…``, an account number. None of them has to be known."""

    amount: int | None
    phone: str | None
    reference: str | None
    before: datetime
    """When the money came."""


@dataclass(frozen=True)
class Requested:
    """A payment, and whether this request made it or an earlier one with the same key did."""

    payment: PaymentView
    is_replay: bool


Finding = Literal["already_known", "recovered", "not_found", "mismatched", "ambiguous"]
"""What a report of money turned out to be."""


@dataclass(frozen=True)
class Settled:
    """What became of a report.

    ``payment_id`` and ``merchant_id`` are of the payment that has the money, or contradicts it. An ambiguous report has
    ``candidates``, and ``asks`` where M-Pesa may know more about the receipt.
    """

    finding: Finding
    payment_id: str | None = None
    merchant_id: str | None = None
    candidates: tuple[str, ...] = ()
    asks: bool = False


@dataclass(frozen=True, kw_only=True)
class WantedMoney:
    """A receiver's ``number`` and an ``amount`` in KES of which money is wanted.

    Payments made between ``since`` and ``until`` may have it, those from ``likely`` on by the rule. Times are in UTC.
    """

    number: str
    amount: int
    since: datetime
    likely: datetime
    until: datetime


class UnallocatedMoney(Protocol):
    """Knows money that came in and belongs to no payment. Provided by the owner of statements."""

    async def find(self, env: str, wanted: Sequence[WantedMoney]) -> Sequence[Transaction]:
        """Return the money of these receivers and amounts that came since ``likely``, each receipt once."""
        ...


Lock: TypeAlias = Callable[[], Awaitable[None]]
"""Locks what a report is kept in."""


async def lock_nothing() -> None:
    """For a report that is kept in no row of its own."""


class StatementMatching(Protocol):
    """Finds the payments that money belongs to, by the one judge, and completes them.

    ``lock`` is awaited once the payment is locked and before anything is written: so every path locks in one order.
    What it raises leaves the call.
    """

    async def judge(self, reports: Sequence[Evidence]) -> Sequence[Verdict]:
        """Return what each report means as things stand. Nothing is locked or written."""
        ...

    async def apply(self, report: Evidence, lock: Lock = lock_nothing) -> Settled:
        """Judge a report, lock its payment, judge again, and write what follows. Needs an open transaction.

        The payment may be another merchant's of the same receiver.
        """
        ...

    async def withdraw(self, report: Evidence, receipts: Sequence[str], lock: Lock = lock_nothing) -> Settled:
        """Record a reversal on a statement that names the receipt of a payment's money. Needs an open transaction.

        ``report.receipt`` is the reversal's own receipt. ``already_known`` with the payment that the money paid for,
        whether this report or an earlier one was the first; ``not_found`` where no payment at the receiver has one of
        ``receipts``, or where a refund of ours that is under way may be meant.
        """
        ...

    async def assign(
        self, report: Evidence, payment_id: str, lock: Lock = lock_nothing, *, by_operator: bool = False
    ) -> Settled | NotAssignable:
        """Give a payment the money that a person says is for it, or return why not. Needs an open transaction.

        A merchant's choice has to fit the report; an operator decides. Raises NotFound.
        """
        ...


class StatusQueries(Protocol):
    """Asks M-Pesa what became of a transaction."""

    async def ask(self, merchant_id: str, env: Env, what: str, *, reference: str | None = None) -> CheckStarted:
        """Ask about a receipt or a payment's id; the answer changes the payment when it comes.

        The answer never shows the money's ``reference``: give it where it is known, so that no payment for another
        account is taken for this one.
        Raises Invalid, NotFound, Conflict, ProviderNotConfigured, ProviderRejected or ProviderUnavailable.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Refundable:
    """A payment with ``amount`` KES of it set aside for a refund; ``left`` KES are neither refunded nor set aside."""

    payment_id: str
    env: Env
    shortcode_id: str
    shortcode: str
    amount: Kes
    payment_amount: Kes
    receipt: str
    left: int


class RefundablePayments(Protocol):
    """Lets refunds change payments. Each call needs an open transaction, so that refund and payment move together."""

    async def reserve(
        self, merchant_id: str, env: Env, payment_id: str, amount: Kes | None, refund_id: str
    ) -> Refundable:
        """Set an amount aside (all that is left without one), so that refunds never exceed the payment.

        Raises NotFound, and Conflict where the payment is not paid, has no receipt, or has less left.
        """
        ...

    async def has_paid(self, env: Env, receipt: str) -> bool:
        """Whether a receipt is that of money that came in and paid for a payment of whichever merchant."""
        ...

    async def release(self, payment_id: str, refund_id: str, amount: Kes, text: str) -> None:
        """Free what was set aside for a refund that will not happen."""
        ...

    async def reverse(self, payment_id: str, refund_id: str, amount: Kes, receipt: str | None) -> None:
        """What was set aside has gone back to the payer: the payment is reversed, in whole or in part."""
        ...


class Payments(Protocol):
    """Asks payers for money and knows how each payment stands."""

    async def request(self, merchant_id: str, env: Env, request: PaymentRequest, *, idempotency_key: str) -> Requested:
        """Ask a payer for money at the merchant's default shortcode of ``env``: one STK push for one key.

        A key belongs to (merchant, env). Raises ProviderNotConfigured without credentials for ``env``, KeyMismatch,
        KeyInProgress, ProviderRejected, Conflict where the shortcode is another merchant's or the key's payment is of
        one that is retired, and ProviderUnavailable when nothing was sent and the key may try again.
        """
        ...

    async def get(self, merchant_id: str, env: Env, payment_id: str) -> PaymentWithTimeline:
        """A payment of this merchant in ``env``; raises NotFound."""
        ...

    async def find(self, payment_id: str) -> PaymentView | None:
        """A payment of whichever merchant, for those who look after all of them; None without one."""
        ...

    async def find_similar(self, merchant_id: str, env: Env, wanted: Similar) -> list[PaymentView]:
        """Return at most 10 unpaid payments made in the 48 hours before, with the amount, payer or reference."""
        ...
