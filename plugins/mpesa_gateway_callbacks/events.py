"""The base of events about results."""

from mpesa_gateway.daraja.callbacks import CallbackEvent
from mpesa_gateway.money import Kes


class QueryResulted(CallbackEvent, frozen=True, kw_only=True):
    """The result of a status query or reversal.

    With ``timed_out`` Daraja's queue gave up: the state of the money is unknown.
    """

    originator_conversation_id: str | None
    conversation_id: str | None
    is_final: bool
    timed_out: bool
    amount: Kes | None = None
    amount_text: str | None = None
