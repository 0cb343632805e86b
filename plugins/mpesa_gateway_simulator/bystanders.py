"""Money at the same tills and paybills that no push asked for.

Each decision is a pure function of a seed. `Prompts` writes the result to the ledger, which Pull and status answers
read.
"""

import hashlib
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, cast

import msgspec

Kind = Literal["push", "pay_bill", "buy_goods", "payout", "shop_payment", "portal_reversal", "charge"]

OUTGOING: frozenset[str] = frozenset({"payout", "shop_payment", "portal_reversal", "charge"})
"""The kinds that leave the shortcode."""

PayerShown = Literal["national", "whole", "masked", "partial", "hashed", "absent"]
"""A form of the payer's number on a statement."""

TimeShown = Literal["offset", "no_zone", "z_meaning_eat"]
"""A form of a time on a statement: with a zone, without, or with a ``Z`` that means East Africa Time."""

PULL_TYPES: dict[Kind, str] = {
    "pay_bill": "c2b-pay-bill-debit",
    "buy_goods": "c2b-buy-goods-debit",
    "payout": "Business Payment to Customer via API",
    "shop_payment": "Business Buy Goods via API",
    "portal_reversal": "Pay Bill Reversal",
    "charge": "Pay Bill Charge",
}
"""``transactiontype`` by kind. A push has the type of a payment to a till or paybill."""

REVERSAL_TYPE = "Transaction Reversal"
"""``transactiontype`` of a reversal through the API."""


def pull_type(kind: str, *, is_till: bool) -> str:
    """Return ``transactiontype`` of a row, reversals through the API included."""
    if kind == "push":
        return PULL_TYPES["buy_goods" if is_till else "pay_bill"]
    return REVERSAL_TYPE if kind == "reversal" else PULL_TYPES[cast("Kind", kind)]


REASONS: dict[Kind, str] = {
    "push": "Pay Bill Online",
    "pay_bill": "Pay Bill",
    "buy_goods": "Customer Merchant Payment",
    "payout": "Business Payment to Customer via API",
    "shop_payment": "Business Buy Goods via API",
    "portal_reversal": "Transaction Reversal",
    "charge": "Organization Charge",
}
"""``ReasonType`` by kind of a status answer."""

OTHER_SHOP = "555555"
"""A shortcode that no merchant of the gateway owns."""

CLOSE_SHARE = 0.1
"""The share of strangers who pay a push's amount to its receiver within minutes, from a similar number."""

_ACCOUNTS = ("", "1", "HOUSE 7B", "rent", "JANE", "walk-in", "0", "INV-2026/11", "x9 ", "Ksh")
_SHOWN: tuple[PayerShown, ...] = ("national", "whole", "masked", "masked", "partial", "hashed", "absent")
_HIDDEN: tuple[PayerShown, ...] = ("masked", "partial", "hashed", "absent")
_TIMES: tuple[TimeShown, ...] = ("offset", "no_zone", "z_meaning_eat")
_NAMES = ("JANE DOE", "ASHA", "OTIENO", "KAMAU J", "WANJIRU", "MÜLLER")
_KINDS: tuple[str, ...] = (
    *("walk_in",) * 4,
    *("regular",) * 2,
    "earlier",
    "payout",
    "refunded",
    "shop",
    "charge",
    "away",
)


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """``amount`` is in KES, ``at`` is aware UTC."""

    receiver: str
    is_till: bool
    phone: str
    amount: int
    reference: str
    at: datetime


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger: ``amount`` is in KES, ``skew`` in seconds, ``receipt`` empty until assigned.

    ``phone`` is the payer or the recipient; ``meant_for`` is the CheckoutRequestID of the push that was paid by hand.
    """

    receipt: str = ""
    phone: str
    amount: int
    shortcode: str
    at: datetime
    checkout_request_id: str | None = None
    reference: str = ""
    kind: Kind = "pay_bill"
    party: str = ""
    payer_shown: PayerShown = "national"
    time_shown: TimeShown = "offset"
    skew: int = 0
    meant_for: str | None = None


def bystanders_of(push: Push, count: float, seed: bytes) -> list[Movement]:
    """Return ``count`` movements on average, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - the seed is the point
    whole = int(count) + (chance.random() < count % 1)
    return [_stranger(push, chance) for _ in range(whole)]


def shown_by_chance(seed: bytes) -> tuple[PayerShown, TimeShown]:
    chance = random.Random(seed)  # noqa: S311 - the seed is the point
    return chance.choice(_SHOWN), chance.choice(_TIMES)


def shown_payer(phone: str, how: PayerShown) -> str | None:
    """Return a payer's number in one form; None if the field is absent."""
    national = phone[3:]
    forms: dict[PayerShown, str | None] = {
        "national": national,
        "whole": phone,
        "masked": f"{phone[:5]}****{phone[-3:]}",
        "partial": f"{national[:3]}***{national[-3:]}",
        "hashed": hashlib.sha256(phone.encode()).hexdigest(),
        "absent": None,
    }
    return forms[how]


def like_digits(phone: str, chance: random.Random) -> str:
    """Return a number with the same first three and last three national digits."""
    while (middle := f"{chance.randrange(1000):03}") == phone[6:9]:
        pass
    return phone[:6] + middle + phone[9:]


def _stranger(push: Push, chance: random.Random) -> Movement:
    if chance.random() < CLOSE_SHARE:
        return _close(push, chance)
    what = chance.choice(_KINDS)
    hours = timedelta(minutes=chance.randint(30, 11 * 60))
    out: dict[str, Kind] = {
        "payout": "payout",
        "refunded": "portal_reversal",
        "shop": "shop_payment",
        "charge": "charge",
    }
    if what in out:
        # Outgoing money often has the phone, amount and reference of the push.
        return _movement(
            chance,
            phone=chance.choice((push.phone, _number(chance))),
            amount=push.amount if what != "charge" else chance.choice((push.amount, 5)),
            shortcode=push.receiver,
            reference=chance.choice((push.reference, "")),
            at=push.at + timedelta(seconds=chance.randint(-600, 60)),
            kind=out[what],
            party=OTHER_SHOP if what == "shop" else "",
        )
    inwards: Kind = "buy_goods" if push.is_till else "pay_bill"
    account = "" if push.is_till else _another(push.reference, chance)
    if what in {"regular", "earlier"}:
        return _movement(
            chance,
            phone=push.phone,
            amount=push.amount,
            shortcode=push.receiver,
            reference=account,
            at=push.at - hours if what == "earlier" else push.at + hours,
            kind=inwards,
        )
    is_away = what == "away"
    return _movement(
        chance,
        phone=push.phone if is_away else _number(chance),
        amount=chance.choice((push.amount, chance.randint(1, 5000))),
        shortcode=OTHER_SHOP if is_away else push.receiver,
        reference=push.reference if is_away and not push.is_till else account,
        at=push.at + timedelta(seconds=chance.randint(-7200, 120)),
        kind=inwards,
    )


def _close(push: Push, chance: random.Random) -> Movement:
    """A payment that careless matching takes for the push.

    At a paybill the account differs: otherwise no field of M-Pesa would distinguish the two.
    """
    return _movement(
        chance,
        phone=like_digits(push.phone, chance),
        amount=push.amount,
        shortcode=push.receiver,
        reference="" if push.is_till else _another(push.reference, chance),
        at=push.at + timedelta(seconds=chance.randint(-60, 240)),
        kind="buy_goods" if push.is_till else "pay_bill",
        payer_shown=chance.choice(_HIDDEN),
    )


def _movement(
    chance: random.Random,
    *,
    phone: str,
    amount: int,
    shortcode: str,
    reference: str,
    at: datetime,
    kind: Kind,
    party: str = "",
    payer_shown: PayerShown | None = None,
) -> Movement:
    return Movement(
        phone=phone,
        amount=amount,
        shortcode=shortcode,
        reference=reference,
        at=at,
        kind=kind,
        party=party or _NAMES[chance.randrange(len(_NAMES))],
        payer_shown=chance.choice(_SHOWN) if payer_shown is None else payer_shown,
        time_shown=chance.choice(_TIMES),
        skew=chance.choice((0, 0, 0, chance.randint(-90, 90))),
    )


def _another(reference: str, chance: random.Random) -> str:
    others: Sequence[str] = [one for one in _ACCOUNTS if one.strip().upper() != reference.strip().upper()]
    return chance.choice(others)


def _number(chance: random.Random) -> str:
    return f"2547{chance.randrange(10**8):08}"
