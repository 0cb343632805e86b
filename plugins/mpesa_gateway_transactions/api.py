"""What other plugins ask of transactions: to record money that M-Pesa reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from mpesa_gateway.env import Env

Direction = Literal["in", "out"]
"""Where the money went, seen from the receiver."""


@dataclass(frozen=True)
class Subject:
    """What money paid for (``payment``) or paid out (``refund``, ``payout``)."""

    kind: str
    subject_id: str


@dataclass(frozen=True, kw_only=True)
class ReportedTransaction:
    """A report of money with a receipt.

    ``number`` is the receiver's, which has to be known. ``amount_cents`` is None where no amount can be read; ``payer``
    is what is visible of the other party's number, ``account_number`` what the payer typed, ``kind`` M-Pesa's name for
    it. ``conflict_id`` is the payment that the money contradicts. ``merchant_id`` is the merchant of the subject or the
    conflict, and where neither is known the one that was told.
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
    """A transaction as it is recorded. ``is_new``: this report is the first of its receipt."""

    transaction_id: str
    merchant_id: str
    amount_cents: int | None
    subject: Subject | None
    is_new: bool


class Transactions(Protocol):
    """Records money: one transaction for each env, direction and receipt, whichever report is the first.

    Amount, time, receiver, receipt and direction stay as the first report states them, and a subject stays for good.
    Later reports fill in what is absent. Each is a witness, and one that states another amount says so.

    The amount of a transaction without a subject changes in one case: the report that makes a payment its subject
    states the amount that was asked for, and the first report contradicted that payment.

    Writers lock their payments before: a transaction is locked when it is recorded.
    """

    async def record(self, seen: Sequence[ReportedTransaction]) -> Sequence[RecordedTransaction | None]:
        """Record reports at once and return their transactions, in the order of the reports.

        None for a report whose subject cannot have the money: another has it, or the amount or the receiver differs.
        """
        ...

    async def defer(self, seen: Sequence[ReportedTransaction]) -> None:
        """Record reports in the statement that ends the open transaction, or precedes its next query.

        The transaction fails by ConcurrentUpdate where ``record`` returns None.
        """
        ...
