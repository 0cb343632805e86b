"""What Safaricom reported, for whoever asked for it."""

from datetime import datetime
from typing import ClassVar

from mpesa_gateway.events import Event
from mpesa_gateway.money import Kes
from mpesa_gateway.security.scopes import Env


class StkResulted(Event, frozen=True, kw_only=True):
    """Daraja told how an STK push ended.

    ``subject_id`` is what the callback's token was made for, empty when it came without one. ``env`` is the token's,
    None without one. ``amount`` is in KES, None when absent or unreadable (then ``amount_text`` says what stood
    there). ``phone`` is as received: whole, masked, or None.
    """

    kind: ClassVar[str] = "callback.stk_resulted"

    callback_id: str
    env: Env | None
    checkout_request_id: str | None
    merchant_request_id: str | None
    result_code: str
    result_desc: str
    amount: Kes | None
    amount_text: str | None
    receipt: str | None
    phone: str | None
    paid_at: datetime | None
    received_at: datetime
