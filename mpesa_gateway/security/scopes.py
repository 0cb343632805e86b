"""What an API key may do, as types: a route says in its signature which right its caller must have."""

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
    """How an API key of this env begins."""
    return _KEY_PREFIX[env]


@dataclass(frozen=True, slots=True)
class Scope:
    """A right that an API key can carry.

    ``meaning`` completes the sentence "its key may …". ``is_for_merchants`` says whether a merchant's own key carries
    it where no scopes are named.
    """

    name: str
    meaning: str
    is_for_merchants: bool = True

    def __str__(self) -> str:
        return self.name


class Scopes:
    """The scopes that the enabled plugins and the kernel declare, in that order."""

    def __init__(self, declared: Mapping[str, Scope]) -> None:
        self._declared = declared
        self.all = tuple(declared.values())
        self.of_merchants = tuple(scope for scope in self.all if scope.is_for_merchants)

    @property
    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(self._declared)

    def named(self, names: Iterable[str]) -> tuple[Scope, ...]:
        """The scopes of these names. Raises ValueError for an unknown name and where there is none."""
        wanted = tuple(names)
        unknown = [name for name in wanted if name not in self._declared]
        if unknown or not wanted:
            seen = f"{unknown[0]!r:.60} is no scope here: use" if unknown else "name at least one of"
            raise ValueError(f"{seen} {', '.join(self.names)}")
        return tuple(self._declared[name] for name in wanted)


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


INJECTED = Dependency()
"""Litestar's mark of a dependency. A plugin writes ``ItemsRead = Annotated[Caller, INJECTED, ITEMS_READ]``."""

MERCHANT_READ = Scope(
    "merchant:read", "see whose key this is, and what is configured, secrets by their last four characters"
)
MERCHANT_WRITE = Scope("merchant:write", "store and remove the keys to M-Pesa, and say where webhooks go")
AUDIT_READ = Scope("audit:read", "see who did what to the merchant's settings")
ADMIN = Scope(
    "admin",
    "look after all of the gateway: merchants, their keys, callbacks, refunds that a person decides",
    is_for_merchants=False,
)
KERNEL_SCOPES = (MERCHANT_READ, MERCHANT_WRITE, AUDIT_READ, ADMIN)
"""The scopes of the kernel's own routes, and of several plugins that build on the kernel alone."""

MerchantRead = Annotated[Caller, INJECTED, MERCHANT_READ]
MerchantWrite = Annotated[Caller, INJECTED, MERCHANT_WRITE]
AuditRead = Annotated[Caller, INJECTED, AUDIT_READ]
Admin = Annotated[Caller, INJECTED, ADMIN]
