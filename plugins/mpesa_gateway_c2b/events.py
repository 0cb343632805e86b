"""Events of c2b."""

from datetime import datetime
from typing import ClassVar

from mpesa_gateway.daraja.callbacks import CallbackEvent


class C2bConfirmed(CallbackEvent, frozen=True, kw_only=True):
    """Safaricom's confirmation of a payment to a receiver; ``subject_id`` is the receiver of the address.

    ``number`` is as stated: the receiver's, or that of its store. ``payer_digest`` is in hexadecimal digits.
    """

    kind: ClassVar[str] = "c2b.confirmed"

    receipt: str
    number: str
    amount_cents: int
    account_number: str | None
    payer: str | None
    payer_digest: str | None
    payer_name: str | None
    paid_at: datetime | None
    transaction_type: str | None
