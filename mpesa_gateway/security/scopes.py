"""What an API key may do, as types: a route says in its signature which right its caller must have."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from litestar.di import Dependency

from mpesa_gateway.env import ENVS, Env, Environment

__all__ = [
    "ENVS",
    "MEANINGS",
    "MERCHANT_SCOPES",
    "Admin",
    "AuditRead",
    "Caller",
    "Env",
    "Environment",
    "MerchantRead",
    "MerchantWrite",
    "PaymentsRead",
    "PaymentsWrite",
    "RefundsRead",
    "RefundsWrite",
    "Scope",
    "WebhooksRead",
    "WebhooksWrite",
]

_KEY_PREFIX: dict[Env, str] = {"live": "sk_live_", "sandbox": "sk_test_"}


def key_prefix(env: Env) -> str:
    """How an API key of this env begins."""
    return _KEY_PREFIX[env]


class Scope(StrEnum):
    """A right that an API key can carry."""

    PAYMENTS_READ = "payments:read"
    PAYMENTS_WRITE = "payments:write"
    REFUNDS_READ = "refunds:read"
    REFUNDS_WRITE = "refunds:write"
    MERCHANT_READ = "merchant:read"
    MERCHANT_WRITE = "merchant:write"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    AUDIT_READ = "audit:read"
    ADMIN = "admin"


MEANINGS: dict[Scope, str] = {
    Scope.PAYMENTS_READ: "see payments with their timelines, what M-Pesa was asked about them, and statements",
    Scope.PAYMENTS_WRITE: "ask payers for money, ask M-Pesa what became of it, and reconcile",
    Scope.REFUNDS_READ: "see refunds",
    Scope.REFUNDS_WRITE: "send money back to those who paid it",
    Scope.MERCHANT_READ: "see whose key this is, and what is configured, secrets by their last four characters",
    Scope.MERCHANT_WRITE: "store and remove the keys to M-Pesa, and say where webhooks go",
    Scope.WEBHOOKS_READ: "see events, and each delivery with its attempts",
    Scope.WEBHOOKS_WRITE: "send webhooks again, and send a test",
    Scope.AUDIT_READ: "see who did what to the merchant's settings",
    Scope.ADMIN: "look after all of the gateway: merchants, their keys, callbacks, refunds that a person decides",
}
"""What a key with each of them may do."""


MERCHANT_SCOPES: tuple[Scope, ...] = tuple(scope for scope in Scope if scope is not Scope.ADMIN)
"""Everything a merchant's own key may carry: all but administration."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling: the merchant and the key that was shown, or an operator ``by`` name who acts for the merchant."""

    merchant_id: str
    key_id: str
    scopes: frozenset[str]
    env: Env
    by: str = ""

    @property
    def actor(self) -> str:
        """How the audit log names this caller."""
        return self.by or f"key:{self.key_id}"


_INJECTED = Dependency()
"""Litestar's mark of a dependency: here, the caller."""

PaymentsRead = Annotated[Caller, _INJECTED, Scope.PAYMENTS_READ]
PaymentsWrite = Annotated[Caller, _INJECTED, Scope.PAYMENTS_WRITE]
RefundsRead = Annotated[Caller, _INJECTED, Scope.REFUNDS_READ]
RefundsWrite = Annotated[Caller, _INJECTED, Scope.REFUNDS_WRITE]
MerchantRead = Annotated[Caller, _INJECTED, Scope.MERCHANT_READ]
MerchantWrite = Annotated[Caller, _INJECTED, Scope.MERCHANT_WRITE]
WebhooksRead = Annotated[Caller, _INJECTED, Scope.WEBHOOKS_READ]
WebhooksWrite = Annotated[Caller, _INJECTED, Scope.WEBHOOKS_WRITE]
AuditRead = Annotated[Caller, _INJECTED, Scope.AUDIT_READ]
Admin = Annotated[Caller, _INJECTED, Scope.ADMIN]
