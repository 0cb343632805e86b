"""Kinds of Safaricom's callbacks."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from mpesa_gateway.env import Env
from mpesa_gateway.events import Event


class CallbackEvent(Event, frozen=True, kw_only=True):
    """An accepted callback.

    Without a token, ``merchant_id`` and ``subject_id`` are empty and ``env`` is None. ``is_listed`` means sent from
    Safaricom's listed addresses.
    """

    callback_id: str
    received_at: datetime
    result_code: str
    result_desc: str
    is_listed: bool = False


@dataclass(frozen=True)
class CallbackContent:
    """A parsed callback; ``handle`` is Daraja's id of its subject, or empty.

    Callbacks with equal ``same`` are duplicates. ``fields`` are additional event fields.
    """

    handle: str
    result_code: str
    same: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class StandingAddress:
    """The subject of a standing address."""

    env: Env
    subject_id: str


class StandingAddresses(Protocol):
    """Tokens of addresses that receive any number of callbacks, such as those registered for a shortcode."""

    def find(self, token: str) -> StandingAddress | None:
        """Return the subject of a known token. No I/O."""
        ...

    async def look_up(self, token: str) -> None:
        """Read a token that another process has created, within a second.

        Raises TimeoutError and asyncpg's errors.
        """
        ...


Answer = Callable[[Any, Any], Awaitable[Mapping[str, Any]]]
"""Takes the gateway and the event; returns the JSON response."""

Reply = Callable[[Any, StandingAddress, bytes], Awaitable[Mapping[str, Any]]]
"""Takes the gateway, the address and the body; returns the JSON response."""


@dataclass(frozen=True, kw_only=True)
class CallbackKind:
    """A kind of callback, declared in ``Plugin.callbacks``.

    ``path`` is below ``/v1/webhooks/mpesa``, None for no such route. ``read`` raises InvalidCallback.
    """

    name: str
    read: Callable[[bytes], CallbackContent]
    event: type[CallbackEvent] | None
    """None: the callback is only stored."""
    schema: Mapping[str, Any]
    examples: Mapping[str, Any] = field(default_factory=dict[str, Any])
    path: str | None = None
    matches: Callable[[Mapping[str, Any]], bool] | None = None
    """Returns True if a body without a token is clearly of this kind."""
    family: str = ""
    """Kinds with one envelope: a token of one is valid for all; a body without a token is tried as each."""
    timeout_of: str = ""
    """The kind whose request this queue timeout ends."""
    can_be_queried: bool = False
    """True if a status query can confirm it. Others without a token need a listed address."""
    answer: Answer | None = None
    """The response, also for duplicates; None means ``Accepted``. Runs after the commit; an exception becomes HTTP
    500."""
    answer_schema: Mapping[str, Any] | None = None
    addresses: type[StandingAddresses] | None = None
    """The port with the tokens of this kind. None: a token belongs to one request of ours."""
    reply: Reply | None = None
    """Answers a question of Safaricom's. The body is neither read as a callback nor stored."""
    personal: frozenset[str] = frozenset()
    """Fields of the body that an erasure replaces, as they show the payer in no searchable form."""
    constants: frozenset[str] = frozenset()
    """Values that most bodies have, and no personal ones: they are stored once for all."""
    is_apart: bool = False
    """True if its callbacks share a transaction with no other kind."""
