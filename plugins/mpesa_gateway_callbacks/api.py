"""What other plugins may ask of callbacks."""

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

from mpesa_gateway.pages import Moment
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_callbacks.errors import CallbackRefused

Kind = Literal["stk", "status", "status-timeout", "reversal", "reversal-timeout", "pull"]
"""What a callback is about."""


class AnotherSubject(CallbackRefused):
    """The callback's token is for one request and its content is about another.

    Raised by whoever knows that.
    """

    status = 403
    reason = "subject"


class Callbacks(Protocol):
    """Hands out the addresses that Daraja calls back, and keeps what it sends there."""

    def url_for(self, kind: Kind, *, env: Env, merchant_id: str, subject_id: str) -> str:
        """The address to give Daraja for one request; only it is taken for ``subject_id``."""
        ...

    async def mark_applied(self, callback_id: str) -> None:
        """Say, in the subscriber's transaction, that a callback has done its work."""
        ...

    def put_aside(self, callback_id: str) -> None:
        """Say, while several callbacks are taken at once, that this one is to be offered by itself afterwards."""
        ...

    async def waiting_among(self, handles: Sequence[str]) -> set[str]:
        """Those of these handles of Daraja's under which callbacks wait."""
        ...

    async def apply_waiting(self, handle: str) -> int:
        """Publish again what waits under a ``handle`` of Daraja's that has just become known.

        That is a CheckoutRequestID or an OriginatorConversationID. Runs in the open transaction; gives how many
        callbacks were published.
        """
        ...

    async def past(self, subject_ids: Collection[str], handles: Collection[str]) -> Sequence[Moment]:
        """What came about these subjects of ours, or under these handles of Daraja's, as lines of a timeline."""
        ...
