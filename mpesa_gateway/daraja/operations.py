"""Declarations of Daraja's operations."""

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


@dataclass(frozen=True)
class DarajaCredentials:
    """With ``till_number`` (Buy Goods), ``shortcode`` is the store."""

    env: Env
    consumer_key: Secret
    consumer_secret: Secret
    shortcode: str
    passkey: Secret
    till_number: str | None = None

    @property
    def receiver(self) -> str:
        """The shortcode that receives the money."""
        return self.till_number or self.shortcode


@dataclass(frozen=True)
class Initiator:
    """An M-Pesa API operator, with the password encrypted for Safaricom."""

    name: str
    security_credential: Secret


class Request(Protocol):
    """The parameters of an operation."""

    def body(self, credentials: DarajaCredentials, now: datetime, /) -> dict[str, Any]:
        """Return the JSON object to send. ``now`` is aware UTC."""
        ...


Q = TypeVar("Q", bound=Request)
A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[Q, A]):
    """A Daraja call, declared in ``Plugin.operations``.

    ``read`` returns the acknowledgement or raises OutcomeUnknown.
    """

    name: str
    path: str
    request: type[Q]
    read: Callable[[Any], A]
    accepts: frozenset[str] | None = ACCEPTED
    """Accepting response codes; None for any."""
    recognises: Callable[[Any], bool] | None = None
    """Returns True for an acknowledgement, regardless of HTTP status."""
    pending: Callable[[StillPending], A] | None = None
    """Converts the fault “still pending”, raised as OutcomeUnknown without it."""


def accepts_conversation(answer: Any) -> bool:
    """Return True if the answer accepts the request and has a conversation id."""
    names = ("OriginatorConversationID", "ConversationID")
    return any(read_text(answer, name) is not None for name in names) and is_accepted(answer, ACCEPTED)


def is_accepted(answer: Any, accepts: Collection[str | None]) -> bool:
    """Return True for one of these codes, without a fault that rules out execution."""
    fault = read_fault_body(answer)
    return response_code(answer) in accepts and read_fault(200, fault.code, fault.message).sent is not Delivered.NO


def response_code(answer: Any) -> str | None:
    """Return the canonical response code; the Pull registration has other field names."""
    names = ("ResponseCode", "ResponseStatus", "Response Status")
    return next((code for name in names if (code := read_code(answer, name)) is not None), None)


def response_text(answer: Any) -> str:
    names = ("ResponseDescription", "Response Description", "ResponseMessage")
    return next((text for name in names if (text := read_message(answer, name)) is not None), "")


def read_ack(answer: Any) -> Ack:
    """Raises OutcomeUnknown."""
    code = read_code(answer, "ResponseCode")
    originator = read_text(answer, "OriginatorConversationID")
    conversation = read_text(answer, "ConversationID")
    if code is None or (originator is None and conversation is None):
        raise OutcomeUnknown("M-Pesa's answer is not an acknowledgement")
    return Ack(
        originator_conversation_id=originator or "",
        conversation_id=conversation or "",
        response_code=code,
        response_description=read_message(answer, "ResponseDescription") or "",
    )
