"""What a host may tell the operators' pages: who is signed in at its own door."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mpesa_gateway.ops_contract import Role


@dataclass(frozen=True, kw_only=True)
class HostOperator:
    """Somebody whom the host has signed in. ``name`` is how the audit log names them: stable, and no secret."""

    name: str
    role: Role


HostLogin = Callable[[Any], Awaitable[HostOperator | None]]
"""Gives who is signed in, None for nobody, from a request's ASGI scope and what the host's own middleware put there."""


class OperatorLogin(Protocol):
    """The operators' own passwords, which a host's login can stand in for."""

    def signed_in_by(self, login: HostLogin) -> HostLogin:
        """Decorate the host's own login: who it says is signed in is, and passwords of the gateway open nothing."""
        ...
