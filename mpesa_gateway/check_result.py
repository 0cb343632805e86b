"""What a check saw, how bad it is, and what to do about it."""

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
    """How bad it is. Only a problem makes ``mpesa-gateway doctor`` exit with 1."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing has to be done."""
    WARNING = "warning"
    """It works, and may stop to, or works less well than it could."""
    PROBLEM = "problem"
    """Money or news of it cannot get through, or is not safe."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. ``name`` is stable, ``text`` and ``fix`` are plain words for whoever operates it.

    Neither holds a secret or a phone number.
    """

    name: str
    level: Level
    text: str
    fix: str | None = None


@dataclass(frozen=True)
class CheckContext:
    """What is examined: as going live needs it where ``is_live``, and for which merchants.

    ``merchant`` and ``env`` are what a check of each merchant looks at; it is called once for each env that the
    merchant has credentials for. ``merchant`` is None for all other checks. ``now`` is in UTC.
    """

    now: datetime
    is_live: bool
    merchants: tuple[Merchant, ...] = ()
    merchant: Merchant | None = None
    env: Env = "sandbox"

    @property
    def one(self) -> Merchant:
        """The merchant that a check of each merchant is to look at. Raises RuntimeError in any other."""
        if self.merchant is None:
            raise RuntimeError("this check is not of_each_merchant, so there is no merchant to look at")
        return self.merchant

    @property
    def if_live(self) -> Level:
        """The level of what is a problem as soon as real money moves, and fine in the sandbox."""
        return Level.PROBLEM if self.is_live else Level.NOTE


Look = Callable[[Runtime, CheckContext], AsyncIterator[CheckResult]]


@dataclass(frozen=True)
class Check:
    """Things to look at under one ``title``: an async generator of observations.

    One that is ``of_each_merchant`` is asked once for each merchant that is examined, and its title is not shown: the
    merchant's name is.
    """

    title: str
    look: Look
    of_each_merchant: bool = False


def ok(name: str, text: str) -> CheckResult:
    """As it should be."""
    return CheckResult(name=name, level=Level.OK, text=text)


def note(name: str, text: str, fix: str | None = None) -> CheckResult:
    """Worth knowing."""
    return CheckResult(name=name, level=Level.NOTE, text=text, fix=fix)


def warning(name: str, text: str, fix: str) -> CheckResult:
    """It works, and may stop to."""
    return CheckResult(name=name, level=Level.WARNING, text=text, fix=fix)


def problem(name: str, text: str, fix: str) -> CheckResult:
    """It has to be mended."""
    return CheckResult(name=name, level=Level.PROBLEM, text=text, fix=fix)
