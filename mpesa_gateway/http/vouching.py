"""What a plugin knows about callers of its public routes: who is no stranger, before anything of a request is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpesa_gateway.http.request_id import Message

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


@dataclass(frozen=True)
class Voucher:
    """Part of a plugin's ``contributes``: what it vouches for is not slowed, nor bounded with strangers' bodies.

    ``vouches`` is called with the gateway, the ASGI scope and the client's address, for each request whose path begins
    with one of ``below``. It does no I/O, and what it says opens nothing: the route checks its caller itself.
    """

    below: tuple[str, ...]
    vouches: Callable[["Gateway", Message, str], bool]
