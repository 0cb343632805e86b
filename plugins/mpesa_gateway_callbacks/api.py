"""What other plugins may ask of callbacks."""

from typing import Literal, Protocol

from mpesa_gateway.security.scopes import Env

Kind = Literal["stk"]
"""What a callback is about."""


class Callbacks(Protocol):
    """Hands out the addresses that Daraja calls back, and keeps what it sends there."""

    def url_for(self, kind: Kind, *, env: Env, subject_id: str) -> str:
        """The address to give Daraja for one request; only it is taken for ``subject_id``."""
        ...

    async def mark_applied(self, callback_id: str) -> None:
        """Say, in the subscriber's transaction, that a callback has done its work."""
        ...

    async def apply_waiting(self, handle: str) -> int:
        """Publish again what waits under Daraja's ``handle`` (CheckoutRequestID), which has just become known.

        Runs in the open transaction; gives how many callbacks were published.
        """
        ...
