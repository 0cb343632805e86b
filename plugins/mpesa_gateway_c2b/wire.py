"""Bodies of C2B requests, as Safaricom sends them."""

import re
from dataclasses import dataclass
from datetime import datetime

from mpesa_gateway.daraja.wire import (
    ContradictoryCallback,
    DuplicateField,
    InvalidCallback,
    read_cents,
    read_moments,
    read_object,
    read_receipt,
    read_text,
)
from mpesa_gateway.phone import normal_phone

_DECISIVE = frozenset(
    {"TransID", "TransAmount", "TransTime", "BusinessShortCode", "BillRefNumber", "MSISDN", "TransactionType"}
)
_NAMES = ("FirstName", "MiddleName", "LastName")

_DIGEST = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
_MASKED = re.compile(r"\+?[0-9*]{9,15}\Z", re.ASCII)


@dataclass(frozen=True)
class Payer:
    """``shown`` is the number as far as visible, ``digest`` the SHA-256 of ``2547…`` in hexadecimal digits."""

    shown: str | None = None
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class C2bBody:
    """A payment to ``number``, a paybill, till or store. ``account_number`` is as typed, None for tills."""

    receipt: str
    number: str
    amount_cents: int
    account_number: str | None
    payer: Payer
    payer_name: str | None
    paid_at: datetime | None
    transaction_type: str | None


def read_body(body: bytes) -> C2bBody:
    """Raises InvalidCallback, also for an unreadable receipt, amount or shortcode."""
    fields = read_object(body)
    if isinstance(fields, DuplicateField) and (doubled := fields.names & _DECISIVE):
        raise ContradictoryCallback(f"{', '.join(sorted(doubled))} is repeated with different values")
    receipt, number = read_receipt(read_text(fields, "TransID")), read_text(fields, "BusinessShortCode")
    if receipt is None:
        raise InvalidCallback("TransID is missing, or no receipt")
    if number is None or re.fullmatch("[0-9]{4,10}", number, re.ASCII) is None:
        raise InvalidCallback("BusinessShortCode is missing, or no shortcode")
    amount_cents = read_cents(read_text(fields, "TransAmount"))
    if amount_cents is None:
        raise InvalidCallback("TransAmount is missing, or no amount")
    names = " ".join(name for field in _NAMES if (name := read_text(fields, field)) is not None)
    return C2bBody(
        receipt=receipt,
        number=number,
        amount_cents=amount_cents,
        account_number=read_text(fields, "BillRefNumber"),
        payer=read_payer(read_text(fields, "MSISDN")),
        payer_name=names or None,
        paid_at=next(iter(read_moments(read_text(fields, "TransTime"))), None),
        transaction_type=read_text(fields, "TransactionType"),
    )


def read_payer(text: str | None) -> Payer:
    """Recognise a number in clear, masked, or as a digest, by its look; a masked digest shows nothing."""
    plain = "".join((text or "").split())
    if _DIGEST.match(plain.lower()):
        return Payer(digest=plain.lower())
    if not _MASKED.match(plain):
        return Payer()
    return Payer(shown=plain if "*" in plain else normal_phone(plain))
