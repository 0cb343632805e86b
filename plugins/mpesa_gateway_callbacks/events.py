"""What results of requests to Daraja have in common, for the plugins that publish them."""

from mpesa_gateway.daraja.callbacks import CallbackEvent
from mpesa_gateway.money import Kes


class QueryResulted(CallbackEvent, frozen=True, kw_only=True):
    """What status queries and reversals have in common: Daraja's ids, and whether this is the last word.

    With ``timed_out`` Daraja's queue gave up: the request got no answer and nothing is known about the money.
    """

    originator_conversation_id: str | None
    conversation_id: str | None
    is_final: bool
    timed_out: bool
    amount: Kes | None = None
    amount_text: str | None = None
