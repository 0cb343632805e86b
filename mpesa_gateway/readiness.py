"""Missing setup of a merchant in one env."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env


class Missing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A missing setup, its effect and the fix. ``shortcode`` is set if it concerns one only."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "name": "initiator",
        "message": "refunds and status queries are off: mpesa.initiator is not stored",
        "fix": "store the credentials again at /ops/credentials/mer_01jdk3v8rc4x9m2q7ztbn5wgae/edit?env=sandbox, or "
        "with PUT /v1/merchant/providers, with mpesa.initiator and mpesa.initiator_password",
    }

    name: str
    message: str
    fix: str
    shortcode: str | None = None


@dataclass(frozen=True)
class Need:
    """A contribution that reads Postgres and settings only: ``PUT /v1/merchant/providers`` calls it."""

    missing: Callable[[Runtime, str, Env], Awaitable[Sequence[Missing]]]


async def missing_of(runtime: Runtime, merchant_id: str, env: Env, shortcode: str | None = None) -> list[Missing]:
    """With ``shortcode``, leave out what concerns others only."""
    found = [one for need in runtime.contributed(Need) for one in await need.missing(runtime, merchant_id, env)]
    return [one for one in found if shortcode is None or one.shortcode in {None, shortcode}]
