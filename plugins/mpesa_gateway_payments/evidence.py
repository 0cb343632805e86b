"""Reports of money, parsed once. Absent facts stay absent."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from mpesa_gateway.daraja.transaction_types import read_transaction_type
from mpesa_gateway.daraja.wire import read_amount as read_kes
from mpesa_gateway.money import Kes
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.result_codes import Outcome
from mpesa_gateway_transactions.api import ReportedTransaction

CLOCKS_DIFFER = timedelta(minutes=2)
"""Greatest difference between M-Pesa's clock and ours."""

_PROVES_WITHIN = timedelta(hours=1)
"""Longest time from request to money for proof of a zone: the two readings are three hours apart."""

Zone = Literal["eat", "utc"]
"""Zone of statement times that end in ``Z``: East Africa Time, or really UTC."""


class Source(StrEnum):
    """Origin of a report."""

    STK_CALLBACK = "stk_callback"
    STK_QUERY = "stk_query"
    STATUS_QUERY = "status_query"
    STATEMENT = "statement"
    C2B = "c2b"


class Proof(StrEnum):
    """Reason to believe that a report comes from M-Pesa."""

    ADDRESS = "address"
    """Posted to an address that only M-Pesa knows."""
    LISTED = "listed"
    """Posted from one of M-Pesa's addresses."""
    ANSWER = "answer"
    """Returned by M-Pesa to our query."""
    WINDOW = "window"
    """On a statement read to its end."""
    PAGE = "page"
    """On a statement not read to its end: other money may follow."""
    CONFIRMED = "confirmed"
    """Posted, and confirmed by M-Pesa's answer."""
    NONE = "none"
    """Sender unproven."""


class Direction(StrEnum):
    """Direction of the money, seen from the receiver."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Receiver:
    """The till or paybill that payers pay."""

    env: Env
    number: str
    is_till: bool = False


@dataclass(frozen=True)
class Handle:
    """The push that a report names, by callback address, CheckoutRequestID, or both."""

    payment_id: str | None = None
    checkout_request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Facts in a report of money.

    ``amount`` is in KES; text if not a whole number. ``payer`` is as shown: whole, masked, cut or a digest. ``time``
    has the possible readings in UTC; ``is_impossible``: none of the stated time's readings is possible.
    """

    source: Source
    proof: Proof
    direction: Direction | None = None
    receiver: Receiver | None = None
    receipt: str | None = None
    handle: Handle | None = None
    reference: str | None = None
    amount: Kes | str | None = None
    payer: str | None = None
    time: tuple[datetime, ...] = ()
    is_impossible: bool = False
    is_receipt_unread: bool = False
    names_receiver: bool = True
    """False for a status answer whose credit party is not ``receiver``'s own number: tills may share a store number."""
    is_shared: bool = False
    """True for a status answer that names several receivers of this gateway alike: it completes no payment."""


def read_callback(result: StkResulted) -> Evidence:
    proof = Proof.ADDRESS if result.subject_id else Proof.LISTED if result.is_listed else Proof.NONE
    return Evidence(
        source=Source.STK_CALLBACK,
        proof=proof,
        receipt=result.receipt,
        handle=Handle(result.subject_id or None, result.checkout_request_id),
        amount=read_amount(result.amount, result.amount_text),
        payer=result.phone,
        time=() if result.paid_at is None else (result.paid_at,),
        is_receipt_unread=result.is_receipt_unread,
    )


class ReportedMoney(msgspec.Struct, frozen=True, kw_only=True):
    """Reported money as stored.

    ``amount`` is in KES, None if absent or not whole (``amount_text`` is the original). ``phone`` is the visible part
    of the number.
    """

    receipt: str | None = None
    amount: Kes | None = None
    amount_text: str | None = None
    phone: str | None = None
    code: str = "0"
    text: str = ""
    at: datetime | None = None
    is_proven: bool = True
    """False if the sender is unproven: only M-Pesa's own answer counts."""
    names_receiver: bool = True
    """As in ``Evidence``. If False, the money is recorded only as the payment's own."""

    @property
    def amount_shown(self) -> str | None:
        """Return the amount in the API's format, or its original text."""
        return self.amount_text if self.amount is None else Kes(self.amount).wire


def reported_money(evidence: Evidence, *, code: str = "0", text: str = "") -> ReportedMoney:
    amount = evidence.amount
    return ReportedMoney(
        receipt=evidence.receipt,
        amount=amount if isinstance(amount, Kes) else None,
        amount_text=None if amount is None else str(amount),
        phone=None if evidence.payer is None or _DIGEST.match(evidence.payer) else evidence.payer,
        code=code,
        text=text,
        at=evidence.time[0] if evidence.time else None,
        is_proven=evidence.proof is not Proof.NONE,
        names_receiver=evidence.names_receiver,
    )


def has_receipt_of_unknown(result: StkResulted, outcome: Outcome) -> bool:
    """A receipt with an unknown code is neither a payment nor a failure."""
    return not outcome.is_known and result.receipt is not None


def read_amount(amount: Kes | None, text: str | None) -> Kes | str | None:
    return text if amount is None else amount


def normalised(text: str | None) -> str | None:
    """Return a reference for comparison: case, width and extra spaces are ignored."""
    return " ".join(unicodedata.normalize("NFKC", text or "").split()).casefold() or None


_DIGEST = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
"""A payer as SHA-256: no number to show."""


def read_kind(kind: str | None) -> tuple[Direction | None, bool]:
    """Return the direction of a ``transactiontype``, and True for a till."""
    direction, is_tills = read_transaction_type(kind)
    return None if direction is None else Direction(direction), is_tills


_PARTY = re.compile(r"\s*\+?([0-9]{5,15})(?![0-9*xX])", re.ASCII)


def party_number(party: str) -> str | None:
    """Return the number in a party such as ``174379 - SHOP``, if whole."""
    found = _PARTY.match(party)
    return None if found is None else found[1]


def read_direction(
    creditors: Iterable[str], numbers: Iterable[str], *, debtors: Iterable[str] = (), amount: str | None = None
) -> Direction | None:
    """Return the direction of a status answer; ``numbers`` are the receiver's.

    IN if each credit party is the receiver; None if none is stated. OUT if a credit party is another, the receiver is
    the only debit party (M-Pesa also names it beside the payer), or ``amount`` is negative.
    """
    known = set(numbers)
    paid = {party_number(party) for party in debtors}
    if is_negative(amount) or (paid and paid <= known):
        return Direction.OUT
    named = [party_number(party) for party in creditors]
    if not named:
        return None
    return Direction.IN if all(number in known for number in named) else Direction.OUT


def names_only(creditors: Iterable[str], number: str) -> bool:
    """True if each credit party is ``number``, and one is stated."""
    return {party_number(party) for party in creditors} == {number}


def unallocated_transaction(evidence: Evidence, merchant_id: str) -> ReportedTransaction | None:
    """Return a status answer as unallocated money; None unless it states receipt, direction, amount and one time.

    None too if it does not name the receiver by its own number: the first report of a receipt fixes the receiver, and
    the money may be another's with the same store number. ``merchant_id`` is the merchant that sent the query.
    """
    is_certain = evidence.proof is Proof.ANSWER and evidence.direction is Direction.IN and len(evidence.time) == 1
    receiver, receipt, amount = evidence.receiver, evidence.receipt, evidence.amount
    if not is_certain or receiver is None or receipt is None or not isinstance(amount, Kes):
        return None
    if not evidence.names_receiver:
        return None
    return ReportedTransaction(
        source="status",
        env=receiver.env,
        number=receiver.number,
        merchant_id=merchant_id,
        direction="in",
        receipt=receipt,
        occurred_at=evidence.time[0],
        amount_cents=int(amount) * 100,
        payer=evidence.payer,
    )


def is_negative(amount: str | None) -> bool:
    """True for ``-500.00``, ``500.00-`` or ``(500.00)``."""
    text = (amount or "").strip().replace("\u2212", "-")
    return any(digit != "0" for digit in text if digit.isdigit()) and (
        text.startswith(("-", "(")) or text.endswith(("-", ")"))
    )


def without_sign(amount: str | None) -> str:
    return (amount or "").strip().strip("-()\u2212 ")


def read_unsigned(amount: str | None) -> Kes | None:
    return read_kes(without_sign(amount))


def possible_times(
    readings: Iterable[datetime], *, now: datetime, since: datetime | None = None, until: datetime | None = None
) -> tuple[datetime, ...]:
    """Return the readings that lie in the window and not in the future."""
    first = None if since is None else since - CLOCKS_DIFFER
    last = now + CLOCKS_DIFFER if until is None else min(now, until) + CLOCKS_DIFFER
    return tuple(at for at in dict.fromkeys(readings) if at <= last and (first is None or at >= first))


def proven_zone(readings: tuple[datetime, ...], asked_at: datetime, known_at: datetime) -> Zone | None:
    """Return the zone that a payment's statement line proves, or None.

    The money moved between ``asked_at`` and ``known_at``. ``readings`` has the East Africa Time first.
    """
    if len(readings) != 2 or known_at - asked_at > _PROVES_WITHIN:
        return None
    fitting = [at for at in readings if asked_at - CLOCKS_DIFFER <= at <= known_at + CLOCKS_DIFFER]
    if len(fitting) != 1:
        return None
    return "eat" if fitting[0] == readings[0] else "utc"


def in_zone(readings: tuple[datetime, ...], zone: Zone | None) -> tuple[datetime, ...]:
    """Return the reading in the proven zone; all readings without one."""
    if zone is None or len(readings) != 2:
        return readings
    return readings[:1] if zone == "eat" else readings[1:]
