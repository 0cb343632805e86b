"""Scopes of API keys, as types for routes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from litestar.di import Dependency

from mpesa_gateway.env import ENVS, Env, Environment

__all__ = [
    "ADMIN",
    "AUDIT_READ",
    "ENVS",
    "INJECTED",
    "KERNEL_SCOPES",
    "MERCHANT_READ",
    "MERCHANT_WRITE",
    "Admin",
    "AuditRead",
    "Caller",
    "Env",
    "Environment",
    "MerchantRead",
    "MerchantWrite",
    "Scope",
    "Scopes",
]

_KEY_PREFIX: dict[Env, str] = {"live": "sk_live_", "sandbox": "sk_test_"}


def key_prefix(env: Env) -> str:
    return _KEY_PREFIX[env]


@dataclass(frozen=True, slots=True)
class Scope:
    """A right of an API key. ``meaning`` completes "its key may …"."""

    name: str
    meaning: str
    is_for_merchants: bool = True

    def __str__(self) -> str:
        return self.name


class Scopes:
    """Scopes of kernel and plugins."""

    def __init__(self, declared: Mapping[str, Scope]) -> None:
        self._declared = declared
        self.all = tuple(declared.values())
        self.of_merchants = tuple(scope for scope in self.all if scope.is_for_merchants)

    @property
    def names(self) -> list[str]:
        return sorted(self._declared)

    def named(self, names: Iterable[str]) -> tuple[Scope, ...]:
        """Raise ValueError for an unknown name or none."""
        wanted = tuple(names)
        unknown = [name for name in wanted if name not in self._declared]
        if unknown or not wanted:
            # An unknown name may be a secret of another field.
            seen = "each scope must be one of" if unknown else "name at least one of"
            raise ValueError(f"{seen} {', '.join(self.names)}")
        return tuple(self._declared[name] for name in wanted)


@dataclass(frozen=True, slots=True)
class Caller:
    """The merchant and its key, or an operator ``by`` name."""

    merchant_id: str
    key_id: str
    scopes: frozenset[str]
    env: Env
    by: str = ""

    @property
    def actor(self) -> str:
        return self.by or f"key:{self.key_id}"


INJECTED = Dependency()
"""Litestar's marker: ``ItemsRead = Annotated[Caller, INJECTED, ITEMS_READ]``."""

MERCHANT_READ = Scope("merchant:read", "see its merchant and the configuration, secrets by their last four characters")
MERCHANT_WRITE = Scope("merchant:write", "store and delete M-Pesa credentials, and set the addresses of webhooks")
AUDIT_READ = Scope("audit:read", "read the audit log of the merchant's settings")
ADMIN = Scope(
    "admin",
    "administer the gateway: merchants, their keys, callbacks, refunds that need a decision",
    is_for_merchants=False,
)
KERNEL_SCOPES = (MERCHANT_READ, MERCHANT_WRITE, AUDIT_READ, ADMIN)

MerchantRead = Annotated[Caller, INJECTED, MERCHANT_READ]
MerchantWrite = Annotated[Caller, INJECTED, MERCHANT_WRITE]
AuditRead = Annotated[Caller, INJECTED, AUDIT_READ]
Admin = Annotated[Caller, INJECTED, ADMIN]
