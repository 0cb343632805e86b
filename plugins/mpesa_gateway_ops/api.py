"""The port through which a host signs operators in with its own login."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mpesa_gateway.permissions import Role


@dataclass(frozen=True, kw_only=True)
class HostOperator:
    """A person signed in by the host. The audit log shows ``name``, which must be stable and no secret."""

    name: str
    role: Role


HostLogin = Callable[[Any], Awaitable[HostOperator | None]]
"""Returns the signed-in operator, or None, from the ASGI scope as the host's middleware left it."""


class OperatorLogin(Protocol):
    """The login of operators, which a host can replace by its own."""

    def signed_in_by(self, login: HostLogin) -> HostLogin:
        """Decorate the host's login function. It then replaces the gateway's passwords."""
        ...
