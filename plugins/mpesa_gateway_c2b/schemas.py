"""Wire schemas of registration."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.env import Environment
from mpesa_gateway.http.field_rules import one_of
from mpesa_gateway.http.fields import Yes, named

State = Annotated[
    Literal["unknown", "registering", "registered", "already_registered", "refused", "removed"],
    named("C2bRegistrationState"),
]


class C2bRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The treatment of money for the shortcode.

    ``response_type`` is Safaricom's decision if the gateway does not answer a validation request: ``Completed`` takes
    the money. ``validation`` is ours: ``accept`` takes all money, ``rules`` only that for known account numbers.
    """

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "response_type": one_of(["Completed", "Cancelled"], title="C2bResponseType"),
        "validation": one_of(["accept", "rules"], title="C2bValidation"),
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"response_type": "Completed", "validation": "rules"}

    response_type: str = "Completed"
    validation: str = "accept"


class C2bAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """The registered addresses. Their token proves that Safaricom is the sender: keep them secret."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "confirmation": "https://pay.example/v1/cb/c2b/s-rcv_….0b7e6a5d…",
        "validation": "https://pay.example/v1/cb/c2b-validation/s-rcv_….0b7e6a5d…",
    }

    confirmation: str
    validation: str


class C2bView(msgspec.Struct, frozen=True, kw_only=True):
    """The registration of a shortcode. ``meaning`` explains ``state`` and names the next step."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "shortcode": "600638",
        "state": "registered",
        "meaning": "Safaricom calls this gateway about each payment to 600638",
        "version": "v2",
        "response_type": "Completed",
        "validation": "rules",
        "answer_code": "0",
        "answer_text": "Success",
    }

    env: Environment
    shortcode: str
    state: State
    meaning: str
    version: Annotated[Literal["v1", "v2"], named("C2bVersion")] | None
    response_type: Annotated[Literal["Completed", "Cancelled"], named("C2bResponseType")]
    validation: Annotated[Literal["accept", "rules"], named("C2bValidation")]
    answer_code: str | None
    answer_text: str | None
    answered_at: datetime | None
    registered_at: datetime | None
    last_confirmation_at: datetime | None


class C2bRegistered(C2bView, frozen=True, kw_only=True):
    """The registration with its addresses; None if Safaricom refused them."""

    addresses: C2bAddresses | None


class C2bRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """No API removes a registration: ``to_do`` has the steps on Safaricom's portal."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "600638", "to_do": ["…"]}

    deleted: Yes = True
    shortcode: str
    to_do: list[str]
