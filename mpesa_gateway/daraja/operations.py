"""What Daraja can be asked: each operation belongs to the plugin that asks, and the client carries it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from mpesa_gateway.daraja.exceptions import OutcomeUnknown, StillPending
from mpesa_gateway.daraja.faults import Delivered, read_fault
from mpesa_gateway.daraja.wire import Ack, read_code, read_fault_body, read_message, read_text
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env

ACCEPTED = frozenset({"0"})
"""The response code of an acknowledgement."""


@dataclass(frozen=True)
class DarajaCredentials:
    """What Daraja wants to know about a merchant. With ``till_number``, Buy Goods, ``shortcode`` is the store."""

    env: Env
    consumer_key: Secret
    consumer_secret: Secret
    shortcode: str
    passkey: Secret
    till_number: str | None = None

    @property
    def receiver(self) -> str:
        """The shortcode that the money reaches: the till, or the paybill itself."""
        return self.till_number or self.shortcode


@dataclass(frozen=True)
class Initiator:
    """Who asks on the M-Pesa organisation portal: its name, and its password as encrypted for Safaricom."""

    name: str
    security_credential: Secret


class Request(Protocol):
    """What is asked for."""

    def body(self, credentials: DarajaCredentials, now: datetime, /) -> dict[str, Any]:
        """Return the JSON object to send. ``now`` is aware UTC."""
        ...


Q = TypeVar("Q", bound=Request)
A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[Q, A]):
    """A call of Daraja's, declared in ``Plugin.operations`` and made by ``gateway.daraja.ask``.

    ``name`` stands in figures, traces and logs; ``path`` is below Daraja's address. ``read`` returns what an answer
    acknowledges, and raises OutcomeUnknown where it is no acknowledgement.
    """

    name: str
    path: str
    request: type[Q]
    read: Callable[[Any], A]
    accepts: frozenset[str] | None = ACCEPTED
    """The response codes that are no refusal, None for any."""
    recognises: Callable[[Any], bool] | None = None
    """Whether an answer acknowledges the request, whatever its HTTP status."""
    pending: Callable[[StillPending], A] | None = None
    """What the fault means that what is asked about has not ended yet; without it, it is raised as OutcomeUnknown."""


def names_a_conversation(answer: Any) -> bool:
    """Whether an answer accepts a request and names its conversation, whatever its HTTP status."""
    names = ("OriginatorConversationID", "ConversationID")
    return any(read_text(answer, name) is not None for name in names) and is_unrefused(answer, ACCEPTED)


def is_unrefused(answer: Any, accepts: Collection[str | None]) -> bool:
    """Whether an answer has one of these codes, and no fault that says that nothing was done."""
    fault = read_fault_body(answer)
    return response_code(answer) in accepts and read_fault(200, fault.code, fault.message).sent is not Delivered.NO


def response_code(answer: Any) -> str | None:
    """The code of an acknowledgement in its one form; Pull's registration has names of its own for it."""
    names = ("ResponseCode", "ResponseStatus", "Response Status")
    return next((code for name in names if (code := read_code(answer, name)) is not None), None)


def response_text(answer: Any) -> str:
    """The words of an acknowledgement, empty without any."""
    names = ("ResponseDescription", "Response Description", "ResponseMessage")
    return next((said for name in names if (said := read_message(answer, name)) is not None), "")


def read_ack(answer: Any) -> Ack:
    """The acknowledgement in an answer that was not refused. Raises OutcomeUnknown for none."""
    code = read_code(answer, "ResponseCode")
    originator = read_text(answer, "OriginatorConversationID")
    conversation = read_text(answer, "ConversationID")
    if code is None or (originator is None and conversation is None):
        raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
    return Ack(
        originator_conversation_id=originator or "",
        conversation_id=conversation or "",
        response_code=code,
        response_description=read_message(answer, "ResponseDescription") or "",
    )
