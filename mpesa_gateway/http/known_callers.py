"""Plugins' checks for known callers of public routes."""

from collections.abc import Callable
from dataclasses import dataclass

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.runtime import Runtime


@dataclass(frozen=True)
class KnownCallerCheck:
    """Exempts callers from throttling; part of a plugin's ``contributes``.

    ``vouches`` gets the runtime, the ASGI scope and the client's address, does no I/O and authorises nothing: the route
    still checks its caller.
    """

    below: tuple[str, ...]
    vouches: Callable[[Runtime, Message, str], bool]
