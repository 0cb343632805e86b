"""Pure decisions on money that may be of a payment without receipt."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from mpesa_gateway.db.engine import Row
from mpesa_gateway.phone import PhoneMatch, compare
from mpesa_gateway_c2b.account_states import normalise

PUSH = timedelta(hours=1)
"""Greatest time from a payment's creation to its money: the greatest ``payments.match_within``."""

CLOCKS_DIFFER = timedelta(minutes=2)

HELD = timedelta(hours=24)
"""Greatest age of money that is left for an unpaid payment."""


HELD_FOR_USERS = timedelta(seconds=100)
"""Greatest age of money that is left for a pending push of another merchant; afterwards it would be announced."""

RECENT_PUSH = timedelta(seconds=120)
"""Greatest age of that push: its callback arrives beside the confirmation."""


def is_like(payment: Row, number: str, payer: str | None) -> bool:
    """Return True if the money for ``number`` may be of a payment of the same amount."""
    return normalise(payment["reference"]) == number and not is_of_another(payment, payer)


def is_left_to_user(alike: Sequence[Row]) -> bool:
    """Return True if the callback of another merchant's push decides: no rule may give it the owner's money."""
    return any(one["is_of_user"] and one["status"] == "pending" for one in alike)


def is_held(alike: Sequence[Row]) -> bool:
    """Return True if the money is left for one of the payments, which have no receipt.

    After ``HELD`` only completed payments hold money, each the first one: they count already.
    """
    if not alike or alike[0]["former"] is None:
        return bool(alike)
    former: int = alike[0]["former"]
    return len([one for one in alike if one["status"] == "completed"]) > former


def latest_push(occurred_at: datetime, confirmed_at: datetime | None) -> datetime:
    """Return the latest creation of a push that money of ``occurred_at``, by M-Pesa's clock, may pay.

    A confirmation arrives at once, so ``confirmed_at``, by the gateway's clock, counts if M-Pesa's is up to an hour
    behind.
    """
    latest = occurred_at + CLOCKS_DIFFER
    if confirmed_at is None or confirmed_at > occurred_at + PUSH:
        return latest
    return max(latest, confirmed_at)


def is_of_another(payment: Row, payer: str | None) -> bool:
    """Return True if the shown payer differs from the payment's."""
    if payer is None or payment["erased_at"] is not None:
        return False
    return compare(payer, payment["phone"]) is PhoneMatch.OTHER
