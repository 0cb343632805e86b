"""Plugins' checks for known callers of public routes."""

from collections.abc import Callable
from dataclasses import dataclass

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.runtime import Runtime


@dataclass(frozen=True)
class KnownCallerCheck:
    """Exempts callers from throttling; part of ``contributes``.

    ``vouches`` gets runtime, ASGI scope and client address. It does no I/O and authorises nothing.
    """

    below: tuple[str, ...]
    vouches: Callable[[Runtime, Message, str], bool]
