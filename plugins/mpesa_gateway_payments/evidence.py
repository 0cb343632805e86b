"""Reports of money, read once at the edge. What a report does not state stays absent."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from mpesa_gateway.daraja.wire import read_amount as read_kes
from mpesa_gateway.money import Kes
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.result_codes import Outcome
from mpesa_gateway_transactions.api import ReportedTransaction

CLOCKS_DIFFER = timedelta(minutes=2)
"""How far M-Pesa's clock and ours may be apart."""

_PROVES_WITHIN = timedelta(hours=1)
"""Between asking for a payment and knowing its money: two readings of a time are three hours apart."""

Zone = Literal["eat", "utc"]
"""How a shortcode's statement writes times that end in ``Z``: in East Africa Time, or truly in UTC."""


class Source(StrEnum):
    """Where a report comes from."""

    STK_CALLBACK = "stk_callback"
    STK_QUERY = "stk_query"
    STATUS_QUERY = "status_query"
    STATEMENT = "statement"


class Proof(StrEnum):
    """Why a report is believed to come from M-Pesa."""

    ADDRESS = "address"
    """It was posted to an address that only M-Pesa was given."""
    LISTED = "listed"
    """It was posted from one of M-Pesa's addresses."""
    ANSWER = "answer"
    """M-Pesa gave it in answer to our question."""
    WINDOW = "window"
    """It is in a statement whose window has been read to its end."""
    PAGE = "page"
    """It is in a statement whose window has not been read to its end: other money may follow."""
    CONFIRMED = "confirmed"
    """It was posted, and M-Pesa's own answer to our question agreed."""
    NONE = "none"
    """Nothing proves its sender."""


class Direction(StrEnum):
    """Where the money went, seen from the receiver."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Receiver:
    """The number that was paid, as payers know it: a till or a paybill."""

    env: Env
    number: str
    is_till: bool = False


@dataclass(frozen=True)
class Handle:
    """Which push of ours a report names: by the address that was made for it, by Daraja's name of it, or by both."""

    payment_id: str | None = None
    checkout_request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a report says of money that moved.

    ``amount`` is in KES, the text where it is no whole number, None where none is stated. ``payer`` is the number as
    shown: whole, masked, cut or a digest. ``time`` has the possible readings of the money's time, in UTC;
    ``is_impossible`` says that a time is stated and that none of its readings is possible, ``is_receipt_unread`` that a
    receipt is stated and cannot be read.
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


def read_callback(result: StkResulted) -> Evidence:
    """What an STK callback states of the push that it speaks of."""
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
    """What M-Pesa told of money that moved.

    ``amount`` is in KES, None when absent or not whole (then ``amount_text`` says what stood there); ``phone`` is what
    is visible of the payer's number.
    """

    receipt: str | None = None
    amount: Kes | None = None
    amount_text: str | None = None
    phone: str | None = None
    code: str = "0"
    text: str = ""
    at: datetime | None = None
    """When the money moved, None where that is not stated."""
    is_proven: bool = True
    """False while nothing proves who posted it: then M-Pesa's own answer counts, and nothing else of it."""

    @property
    def amount_shown(self) -> str | None:
        """The amount as the API shows it, or what stood there where it is none."""
        return self.amount_text if self.amount is None else Kes(self.amount).wire


def reported_money(evidence: Evidence, *, code: str = "0", text: str = "") -> ReportedMoney:
    """What is written of a report."""
    amount = evidence.amount
    return ReportedMoney(
        receipt=evidence.receipt,
        amount=amount if isinstance(amount, Kes) else None,
        amount_text=None if amount is None else str(amount),
        phone=evidence.payer,
        code=code,
        text=text,
        at=evidence.time[0] if evidence.time else None,
        is_proven=evidence.proof is not Proof.NONE,
    )


def has_receipt_of_unknown(result: StkResulted, outcome: Outcome) -> bool:
    """Whether a callback has a receipt beside a result code that is unknown: neither a payment nor a failure."""
    return not outcome.is_known and result.receipt is not None


def read_amount(amount: Kes | None, text: str | None) -> Kes | str | None:
    """The amount of a report from its number and the text that stood there."""
    return text if amount is None else amount


def normalised(text: str | None) -> str | None:
    """A reference as it is compared: regardless of case, width, outer and repeated spaces. None for an empty one."""
    return " ".join(unicodedata.normalize("NFKC", text or "").split()).casefold() or None


_LETTERS = re.compile(r"[^a-z0-9]+")

_INCOMING: dict[str, bool] = {
    "c2bpaybilldebit": False,
    "c2bpaybill": False,
    "paybill": False,
    "customerpaybillonline": False,
    "c2bbuygoodsdebit": True,
    "c2bbuygoods": True,
    "buygoods": True,
    "customerbuygoodsonline": True,
    "customermerchantpayment": True,
}
"""Values of ``transactiontype`` for payments from customers, letters only, and whether the receiver is a till."""

_OUTGOING = ("revers", "b2c", "b2b", "payout", "charge", "withdraw", "salary", "promotion", "businesspayment")


def read_kind(kind: str | None) -> tuple[Direction | None, bool]:
    """The direction of a ``transactiontype`` (None for one that is absent or unknown), and whether it is a till's."""
    word = _LETTERS.sub("", (kind or "").casefold())
    if word in _INCOMING:
        return Direction.IN, _INCOMING[word]
    return (Direction.OUT, False) if any(part in word for part in _OUTGOING) else (None, "buygoods" in word)


_PARTY = re.compile(r"\s*\+?([0-9]{5,15})(?![0-9*xX])", re.ASCII)


def party_number(party: str) -> str | None:
    """The number in a party as M-Pesa names it, such as ``174379 - SHOP``; None without a whole one."""
    found = _PARTY.match(party)
    return None if found is None else found[1]


def read_direction(
    creditors: Iterable[str], numbers: Iterable[str], *, debtors: Iterable[str] = (), amount: str | None = None
) -> Direction | None:
    """The direction of a status answer by its parties; ``numbers`` are those of the receiver.

    IN where each credit party is the receiver, None where none is stated. OUT where a credit party is somebody else,
    where the only debit party is the receiver itself (M-Pesa names it beside the payer, too), or where the ``amount``
    that was stated is below zero.
    """
    known = set(numbers)
    paid = {party_number(party) for party in debtors}
    if is_negative(amount) or (paid and paid <= known):
        return Direction.OUT
    named = [party_number(party) for party in creditors]
    if not named:
        return None
    return Direction.IN if all(number in known for number in named) else Direction.OUT


def seen_unallocated(evidence: Evidence, merchant_id: str) -> ReportedTransaction | None:
    """M-Pesa's answer as money that came in to our receiver and that no payment is known to have.

    Returns None where the answer does not state its receipt, direction, amount and one time. ``merchant_id`` is the
    merchant that asked.
    """
    is_certain = evidence.proof is Proof.ANSWER and evidence.direction is Direction.IN and len(evidence.time) == 1
    receiver, receipt, amount = evidence.receiver, evidence.receipt, evidence.amount
    if not is_certain or receiver is None or receipt is None or not isinstance(amount, Kes):
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
    """Whether an amount is written as one that went out: ``-500.00``, ``500.00-`` or ``(500.00)``."""
    text = (amount or "").strip().replace("\u2212", "-")
    return any(digit != "0" for digit in text if digit.isdigit()) and (
        text.startswith(("-", "(")) or text.endswith(("-", ")"))
    )


def read_unsigned(amount: str | None) -> Kes | None:
    """An amount in KES that is shown below zero, because the money went out."""
    return read_kes((amount or "").strip().strip("-()\u2212 "))


def possible(
    readings: Iterable[datetime], *, now: datetime, since: datetime | None = None, until: datetime | None = None
) -> tuple[datetime, ...]:
    """The readings of a time that are neither in the future nor outside the window that was asked for."""
    first = None if since is None else since - CLOCKS_DIFFER
    last = now + CLOCKS_DIFFER if until is None else min(now, until) + CLOCKS_DIFFER
    return tuple(at for at in dict.fromkeys(readings) if at <= last and (first is None or at >= first))


def proven_zone(readings: tuple[datetime, ...], asked_at: datetime, known_at: datetime) -> Zone | None:
    """What a line of a payment proves about times that end in ``Z``.

    The payment was asked for at ``asked_at``, and its money was known of at ``known_at``: the money moved in between.
    ``readings`` are the line's, in East Africa Time first. None where they prove nothing: also where so much time lies
    in between that a wrong reading might fit.
    """
    if len(readings) != 2 or known_at - asked_at > _PROVES_WITHIN:
        return None
    fitting = [at for at in readings if asked_at - CLOCKS_DIFFER <= at <= known_at + CLOCKS_DIFFER]
    if len(fitting) != 1:
        return None
    return "eat" if fitting[0] == readings[0] else "utc"


def in_zone(readings: tuple[datetime, ...], zone: Zone | None) -> tuple[datetime, ...]:
    """The readings of a time where its zone is proven; all of them where it is not."""
    if zone is None or len(readings) != 2:
        return readings
    return readings[:1] if zone == "eat" else readings[1:]
