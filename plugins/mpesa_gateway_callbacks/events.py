"""What Safaricom reported, for whoever asked for it."""

from datetime import datetime
from typing import ClassVar

from mpesa_gateway.events import Event
from mpesa_gateway.money import Kes


class CallbackEvent(Event, frozen=True, kw_only=True):
    """A callback that was taken.

    ``merchant_id``, ``subject_id`` and ``env`` are what its token was made for; without a token they are empty, and
    ``env`` None. ``is_listed`` says that it came from one of Safaricom's listed addresses. ``received_at`` is in UTC.
    """

    callback_id: str
    received_at: datetime
    result_code: str
    result_desc: str
    is_listed: bool = False


class StkResulted(CallbackEvent, frozen=True, kw_only=True):
    """Daraja told how an STK push ended.

    ``amount`` is in KES, None when absent or unreadable (then ``amount_text`` says what stood there). ``phone`` is as
    received: whole, masked, or None. ``is_receipt_unread`` says that a receipt is stated and cannot be read.
    """

    kind: ClassVar[str] = "callback.stk_resulted"

    checkout_request_id: str | None
    merchant_request_id: str | None
    amount: Kes | None
    amount_text: str | None
    receipt: str | None
    phone: str | None
    paid_at: datetime | None
    is_receipt_unread: bool = False


class QueryResulted(CallbackEvent, frozen=True, kw_only=True):
    """What status queries and reversals have in common: Daraja's ids, and whether this is the last word.

    With ``timed_out`` Daraja's queue gave up: the request got no answer and nothing is known about the money.
    """

    originator_conversation_id: str | None
    conversation_id: str | None
    is_final: bool
    timed_out: bool
    amount: Kes | None
    amount_text: str | None


class StatusResulted(QueryResulted, frozen=True, kw_only=True):
    """Daraja told how a transaction stands: ``result_code`` is the query's, ``transaction_status`` the money's.

    ``payers`` are the debit parties as Daraja names them, such as ``2547… - JANE DOE``, ``payees`` the credit parties.
    """

    kind: ClassVar[str] = "callback.status_resulted"

    transaction_status: str | None
    receipt: str | None
    payers: tuple[str, ...]
    payees: tuple[str, ...] = ()
    finished_at: datetime | None


class ReversalResulted(QueryResulted, frozen=True, kw_only=True):
    """Daraja told how a reversal ended: ``reversal_receipt`` is its own, ``receipt`` that of the reversed payment."""

    kind: ClassVar[str] = "callback.reversal_resulted"

    reversal_receipt: str | None
    receipt: str | None
