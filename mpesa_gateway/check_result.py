"""Results of checks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import Env


class Level(StrEnum):
    """Severity. Only a problem makes ``mpesa-gateway doctor`` exit with 1."""

    OK = "ok"
    NOTE = "note"
    """Needs no action."""
    WARNING = "warning"
    """Works, but may fail, or works less well than it could."""
    PROBLEM = "problem"
    """Money or notifications fail or are not safe."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One observation. ``text`` and ``fix`` hold no secrets and phone numbers."""

    name: str
    level: Level
    text: str
    fix: str | None = None


@dataclass(frozen=True)
class CheckContext:
    """The subject of checks. ``now`` is in UTC.

    ``merchant`` and ``env`` are set for checks of each merchant.
    """

    now: datetime
    is_live: bool
    merchants: tuple[Merchant, ...] = ()
    merchant: Merchant | None = None
    env: Env = "sandbox"

    @property
    def require_merchant(self) -> Merchant:
        if self.merchant is None:
            raise RuntimeError("this check is not of_each_merchant, so there is no merchant to look at")
        return self.merchant

    @property
    def if_live(self) -> Level:
        return Level.PROBLEM if self.is_live else Level.NOTE


Look = Callable[[Runtime, CheckContext], AsyncIterator[CheckResult]]


@dataclass(frozen=True)
class Check:
    """An async generator of results.

    With ``of_each_merchant``, it is called for each merchant and shown under its name.
    """

    title: str
    look: Look
    of_each_merchant: bool = False


def ok(name: str, text: str) -> CheckResult:
    return CheckResult(name=name, level=Level.OK, text=text)


def note(name: str, text: str, fix: str | None = None) -> CheckResult:
    return CheckResult(name=name, level=Level.NOTE, text=text, fix=fix)


def warning(name: str, text: str, fix: str) -> CheckResult:
    return CheckResult(name=name, level=Level.WARNING, text=text, fix=fix)


def problem(name: str, text: str, fix: str) -> CheckResult:
    return CheckResult(name=name, level=Level.PROBLEM, text=text, fix=fix)
