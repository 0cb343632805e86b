"""What other plugins and hosts may ask of payments."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Literal, Protocol

from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments.schemas import CheckStarted, PaymentView, PaymentWithTimeline

__all__ = [
    "CheckStarted",
    "Finding",
    "Match",
    "PaymentRequest",
    "PaymentView",
    "PaymentWithTimeline",
    "Payments",
    "Recovery",
    "Refundable",
    "RefundablePayments",
    "Requested",
    "Statement",
    "StatusQueries",
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


@dataclass(frozen=True)
class Requested:
    """A payment, and whether this request made it or an earlier one with the same key did."""

    payment: PaymentView
    is_replay: bool


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Money as M-Pesa shows it on a statement or in a status answer.

    ``amount`` is in KES, None when it is not whole; ``phone`` is what is visible of the payer's number; ``moments`` are
    the readings of its time, in UTC; ``source`` says where M-Pesa showed it.
    """

    receipt: str
    amount: Kes | None
    amount_text: str
    phone: str | None
    reference: str | None
    moments: tuple[datetime, ...]
    source: Literal["statement", "status_query"] = "statement"


Finding = Literal["already_known", "recovered", "not_found", "mismatched", "ambiguous"]
"""What a statement line turned out to be."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A payment that a statement line can belong to; ``created_at`` is in UTC."""

    payment_id: str
    phone: Msisdn
    reference: str
    created_at: datetime


@dataclass(frozen=True)
class Match:
    """The payments that a statement line can belong to, and by what they were found.

    By the ``rule`` there is a ``candidate`` only where exactly one payment fits, whoever asked for it; several, some of
    them perhaps other merchants', are ambiguous.
    """

    how: Literal["receipt", "reference", "rule"]
    payment_ids: tuple[str, ...] = ()
    candidate: Candidate | None = None
    is_ambiguous: bool = False

    @property
    def payment_id(self) -> str | None:
        """The one payment that it is, None where that is not sure."""
        return self.payment_ids[0] if self.payment_ids and not self.is_ambiguous else None

    BEFORE: ClassVar[timedelta] = timedelta(minutes=2)
    """How much earlier than our record of the payment M-Pesa's clock may put the money."""

    AFTER: ClassVar[timedelta] = timedelta(hours=24)
    """How much later than the request a payer may still have paid."""


class Recovery(Protocol):
    """Finds the payment that money belongs to, and completes it."""

    async def match(self, merchant_id: str, env: Env, shortcode: str, line: Statement) -> Match:
        """The payment that a line can belong to.

        By receipt, by our unique reference, or else by the rule of shortcode, amount, visible digits of the payer,
        reference and time, among payments that have no receipt, other merchants' of this shortcode included. Several
        are never guessed between.
        """
        ...

    async def settle(self, merchant_id: str, env: Env, payment_id: str, line: Statement) -> Finding:
        """Complete this merchant's payment with this money, or say why not: it is done already, or does not fit."""
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
