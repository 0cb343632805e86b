"""The public API of transactions: recording money that M-Pesa reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from mpesa_gateway.env import Env

Direction = Literal["in", "out"]
"""Direction of the money, seen from the receiver."""


@dataclass(frozen=True)
class Subject:
    """The object that money paid for (``payment``) or paid out (``refund``, ``payout``)."""

    kind: str
    subject_id: str


@dataclass(frozen=True, kw_only=True)
class ReportedTransaction:
    """A report of money with a receipt.

    ``number`` is that of a known receiver. ``amount_cents`` is None if unreadable. ``payer`` is the visible part of the
    other party's number, ``account_number`` the payer's input, ``kind`` M-Pesa's transaction type. ``conflict_id`` is
    the payment that the money contradicts. ``merchant_id`` is the merchant of the subject or conflict, otherwise of the
    request or run.
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
    payer_name: str | None = None
    account_number: str | None = None
    kind: str | None = None
    subject: Subject | None = None
    conflict_id: str | None = None


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

        None for a report whose subject cannot have the money: it has another subject, amount or receiver.
        """
        ...

    async def defer(self, seen: Sequence[ReportedTransaction]) -> None:
        """Record reports at the end of the transaction, or before its next query.

        The transaction raises ConcurrentUpdate where ``record`` returns None.
        """
        ...
