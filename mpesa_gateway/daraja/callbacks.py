"""The kinds of callbacks that Safaricom sends. Each belongs to the plugin that asked for it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mpesa_gateway.events import Event


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


@dataclass(frozen=True)
class CallbackContent:
    """One callback, read. ``handle`` is Daraja's id of what it is about, empty where it names none.

    ``same`` is what equal callbacks agree in; ``fields`` are those of the kind's event beyond ``CallbackEvent`` and
    ``result_desc``.
    """

    handle: str
    result_code: str
    same: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


Answer = Callable[[Any, Any], Awaitable[Mapping[str, Any]]]
"""Takes the gateway and the callback's event, and returns the JSON object that Safaricom is answered with."""


@dataclass(frozen=True, kw_only=True)
class CallbackKind:
    """A kind of callback, declared in ``Plugin.callbacks``.

    ``name`` stands in the addresses that we hand out, ``/v1/cb/{name}/{token}``. ``path`` is the kind's place below
    ``/v1/webhooks/mpesa``: two parts, such as ``reversal/result``, empty for that address itself, None for no place.
    ``read`` raises InvalidCallback. ``schema`` and ``examples`` describe the body in the OpenAPI document.
    """

    name: str
    read: Callable[[bytes], CallbackContent]
    event: type[CallbackEvent] | None
    """What is published of it; None for a callback that is kept and that nothing follows from."""
    schema: Mapping[str, Any]
    examples: Mapping[str, Any] = field(default_factory=dict[str, Any])
    path: str | None = None
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a body without a token is plainly of this kind, whichever address it came to."""
    family: str = ""
    """Kinds of one envelope: a token of one opens at the addresses of all, and a body without a token is offered as
    each of them."""
    timeout_of: str = ""
    """The kind whose request this one ends without an answer: Daraja's queue gave up."""
    can_be_asked: bool = False
    """Whether Daraja can be asked about what it says. Any other callback without a token needs a listed address."""
    answer: Answer | None = None
    """What Safaricom is answered, also where the callback has come before; None for ``Accepted``. It is called after
    the callback is committed, and raises where there is no answer: HTTP 500."""
    answer_schema: Mapping[str, Any] | None = None
    """The answer in the OpenAPI document."""
