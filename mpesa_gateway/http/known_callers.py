"""What a plugin knows about callers of its public routes: who is no stranger, before anything of a request is read."""

from collections.abc import Callable
from dataclasses import dataclass

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.runtime import Runtime


@dataclass(frozen=True)
class KnownCallerCheck:
    """Part of a plugin's ``contributes``: what it vouches for is not slowed, nor bounded with strangers' bodies.

    ``vouches`` is called with the runtime, the ASGI scope and the client's address, for each request whose path begins
    with one of ``below``. It does no I/O, and what it says opens nothing: the route checks its caller itself.
    """

    below: tuple[str, ...]
    vouches: Callable[[Runtime, Message, str], bool]
