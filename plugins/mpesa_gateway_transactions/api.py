"""The public API of transactions: recording money that M-Pesa reports, and what it pays for."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Protocol

from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict
from mpesa_gateway.http.fields import id_field
from mpesa_gateway.money import Kes
from mpesa_gateway.runtime import Runtime


class NotAllocatable(Conflict):
    """The money cannot be allocated, or M-Pesa's evidence fits another payment."""


TransactionId = Annotated[str, id_field("txn")]

Direction = Literal["in", "out"]
"""Direction of the money, seen from the receiver."""


@dataclass(frozen=True)
class Subject:
    """The object that money paid for (``payment``, ``account_number``) or paid out (``refund``, ``payout``).

    A payment, refund or payout has one transaction; other subjects may have many.
    """

    kind: str
    subject_id: str


@dataclass(frozen=True, kw_only=True)
class ReportedTransaction:
    """A report of money with a receipt.

    ``number`` is that of a known receiver. ``amount_cents`` is None if unreadable. ``payer`` is the visible part of the
    other party's number, ``payer_digest`` its SHA-256 in hexadecimal, ``account_number`` the payer's input, ``kind``
    M-Pesa's transaction type. ``conflict_id`` is the payment that the money contradicts. ``merchant_id`` is the
    merchant of the subject or conflict, otherwise of the request or run.
    """

    source: str
    env: Env
    number: str
    merchant_id: str
    direction: Direction
    receipt: str
    occurred_at: datetime
    amount_cents: int | None
    fee_cents: int | None = None
    payer: str | None = None
    payer_digest: str | None = None
    payer_name: str | None = None
    account_number: str | None = None
    kind: str | None = None
    subject: Subject | None = None
    conflict_id: str | None = None
    is_announced: bool = False
    """True if the writer of a subject knows that ``transaction.received`` was published."""


@dataclass(frozen=True, kw_only=True)
class RecordedTransaction:
    """``is_new``: this is the first report of its receipt."""

    transaction_id: str
    merchant_id: str
    amount_cents: int | None
    subject: Subject | None
    is_new: bool


class Transactions(Protocol):
    """Records money: one transaction for each env, direction and receipt.

    Amount, time, receiver, receipt and direction are taken from the first report; a subject is never replaced. Later
    reports add absent facts and are stored as witnesses, with any other amount that they state. One exception: if the
    first report contradicted a payment that becomes the subject, the requested amount replaces the reported one.
    Writers lock their payments first; recording locks the transaction.
    """

    async def record(self, seen: Sequence[ReportedTransaction]) -> Sequence[RecordedTransaction | None]:
        """Record reports and return their transactions in order.

        None for a report whose subject cannot have the money: it has another subject, amount or receiver, is refunded,
        or was announced and the report does not know.
        """
        ...

    async def announced(self, env: Env, receipts: Sequence[str]) -> Mapping[str, str]:
        """Return the receipts of incoming money that was announced, with the merchant of ``transaction.received``."""
        ...

    async def defer(self, seen: Sequence[ReportedTransaction]) -> None:
        """Record reports at the end of the transaction, or before its next query.

        The transaction raises ConcurrentUpdate where ``record`` returns None.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class IncomingMoney:
    """Money in without a subject, for a rule to find it.

    ``transaction_id`` is None for the first report. ``owner_id`` is the receiver's owner. ``conflict_id`` is the
    payment that the money contradicts.
    """

    transaction_id: str | None
    source: str
    env: Env
    receiver_id: str
    number: str
    is_till: bool
    owner_id: str | None
    merchant_id: str
    receipt: str
    amount_cents: int | None
    occurred_at: datetime
    account_number: str | None
    payer: str | None
    payer_digest: str | None
    kind: str | None
    conflict_id: str | None = None


@dataclass(frozen=True)
class FoundSubject:
    """``merchant_id`` is the subject's."""

    subject: Subject
    merchant_id: str


@dataclass(frozen=True)
class LeftToReport:
    """An expected report decides what the money is for: no other rule is asked now."""


@dataclass(frozen=True)
class Allocated:
    """``by`` is the rule's name or the actor."""

    transaction_id: str
    env: Env
    receiver_id: str
    merchant_id: str
    receipt: str
    amount_cents: int | None
    subject: Subject
    by: str


@dataclass(frozen=True, kw_only=True)
class RefundableMoney:
    """A transaction before a refund: ``merchant_id`` may refund ``left`` KES of ``amount``.

    ``refusal`` is the reason if none can be refunded.
    """

    transaction_id: str
    env: Env
    merchant_id: str
    receipt: str
    payer: str | None
    amount: Kes
    left: Kes
    refusal: str | None


@dataclass(frozen=True, kw_only=True)
class ReservedMoney:
    """A transaction with ``amount`` KES reserved for a refund; ``left_cents`` are neither refunded nor reserved.

    ``shortcode_id`` is that of the merchant that refunds it, also if retired.
    """

    transaction_id: str
    number: str
    shortcode_id: str
    receipt: str
    amount: Kes
    amount_cents: int
    left_cents: int
    subject: Subject | None


@dataclass(frozen=True, kw_only=True)
class RefundedMoney:
    """Money of which one refund has returned ``refund_cents`` to the payer, and all refunds ``refunded_cents``."""

    transaction_id: str
    env: Env
    receiver_id: str
    number: str
    merchant_id: str
    receipt: str
    amount_cents: int
    refund_id: str
    refund_cents: int
    refunded_cents: int
    account_number: str | None
    subject: Subject | None


@dataclass(frozen=True, kw_only=True)
class ReportedReversal:
    """A report that M-Pesa returned money in, which has one of ``receipts``.

    ``number`` is the receiver's. ``is_whole``: all of the money. ``amount_cents`` is the returned part, None if not
    stated or unreadable. ``reversal_receipt`` is that of the recorded money out.
    """

    env: Env
    number: str
    receipts: Sequence[str]
    is_whole: bool = False
    amount_cents: int | None = None
    reversal_receipt: str | None = None


ReversalOutcome = Literal["applied", "known", "claimed", "unknown"]
"""``claimed``: unallocated money that may be a payment's; ``unknown``: there is no such money without a payment."""

LockLater = Callable[[], Awaitable[None]]


async def lock_nothing_more() -> None:
    """For a report without a row of its own."""


class ReversibleTransactions(Protocol):
    """Marks money without a payment as reversed outside the gateway."""

    async def reverse(self, seen: ReportedReversal, lock: LockLater = lock_nothing_more) -> ReversalOutcome:
        """Record a reversal, each once; publish ``transaction.reversed``.

        Needs an open transaction. ``lock`` is awaited after the money is locked and before any write.
        """
        ...


class RefundableTransactions(Protocol):
    """Changes transactions without a payment for refunds. Each call that changes one needs an open transaction."""

    async def offer(self, merchant_id: str, env: Env, transaction_id: str) -> None:
        """Offer unallocated money of the merchant to the rules once more, in a transaction of its own."""
        ...

    async def find(self, transaction_id: str) -> RefundableMoney:
        """Return any merchant's transaction, for operators. Raises NotFound."""
        ...

    async def reserve(self, merchant_id: str, env: Env, transaction_id: str, amount: Kes | None) -> ReservedMoney:
        """Reserve an amount, by default all that is left; lock the transaction.

        The merchant owns the receiver, or the transaction's subject. Raises NotFound, InvalidFields if cents are left,
        ProviderNotConfigured if the merchant has no shortcode at the receiver, or Conflict for money out, a payment's
        money, money that a rule claims, and money of which less is left.
        """
        ...

    async def reserve_again(self, transaction_id: str, amount: Kes) -> None:
        """Reserve for a refund that M-Pesa carried out late. Raises Conflict."""
        ...

    async def release(self, transaction_id: str, amount: Kes) -> None: ...

    async def complete(
        self, merchant_id: str, transaction_id: str, refund_id: str, amount: Kes, receipt: str | None
    ) -> RefundedMoney:
        """Mark a reserved amount as refunded, and record the money out if the reversal's receipt is known."""
        ...

    async def has_come_in(self, env: Env, receipt: str) -> bool:
        """Return True if the receipt is of money in."""
        ...


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A person's choice of ``subject_id`` for ``money``.

    ``assign`` awaits ``lock``, which locks the transaction, after it has locked the subject and before any write. The
    subject is ``merchant_id``'s, or with None any merchant's. An operator's choice may differ from the evidence.
    """

    money: IncomingMoney
    subject_id: str
    merchant_id: str | None
    by_operator: bool
    lock: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class AllocationRule:
    """Finds the subject of incoming money; contributed by the subject's plugin.

    Each rule sees the money that earlier rules left; rules with ``is_first`` come before the others. ``find`` answers
    in order, in the recording transaction before it locks transactions; it may lock payments for one money, and raises
    ConcurrentUpdate for several. ``allocated`` follows each allocation to ``subject_kind``, also by a person, and
    ``refunded`` each refund of its money; both may lock account numbers.
    """

    name: str
    subject_kind: str
    find: Callable[[Runtime, Sequence[IncomingMoney]], Awaitable[Sequence[FoundSubject | LeftToReport | None]]]
    allocated: Callable[[Runtime, Sequence[Allocated]], Awaitable[None]] | None = None
    is_expected: Callable[[Runtime, Sequence[IncomingMoney]], Awaitable[Sequence[bool]]] | None = None
    """True for money that may still find its subject by itself: it is announced later."""
    assign: Callable[[Runtime, Assignment], Awaitable[FoundSubject]] | None = None
    """Allocates money to the subject that a person chose. Raises NotFound, or Conflict with the reason."""
    refunded: Callable[[Runtime, RefundedMoney], Awaitable[None]] | None = None
    claims: Callable[[Runtime, IncomingMoney], Awaitable[FoundSubject | None]] | None = None
    """Names a subject that unallocated money may be for: such money is not refunded. No locks."""
    is_first: bool = False


class OpenMoney(Protocol):
    """Reads money that needs a decision."""

    async def find(self, transaction_id: str) -> IncomingMoney | None:
        """Return money in that is unallocated and of which no refund has begun; of any merchant, for operators."""
        ...


class Allocations(Protocol):
    """Records incoming money and finds what it pays for."""

    async def receive(self, seen: Sequence[ReportedTransaction]) -> Sequence[RecordedTransaction]:
        """Record reports whose subject their caller does not know; return their transactions in order.

        Needs an open transaction without locks after ``payment``. Raises ConcurrentUpdate if another transaction was
        first, or one of several reports is a payment's: receive each in a transaction of its own.
        """
        ...

    async def publish_learnt(self, env: Env, told: Mapping[str, str]) -> None:
        """Publish ``transaction.allocated`` of announced money to the merchants that heard of it, by receipt."""
        ...
