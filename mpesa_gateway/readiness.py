"""What a merchant still lacks in one env: each plugin reports its own part."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not set up: what it is, what does not work without it, and how to set it up."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "name": "initiator",
        "message": "refunds and status queries are off: mpesa.initiator is not stored",
        "fix": "PUT /v1/merchant/providers, with mpesa.initiator and mpesa.initiator_password",
    }

    name: str
    message: str
    fix: str


@dataclass(frozen=True)
class Need:
    """A contribution (``Plugin.contributes``). ``missing`` returns what a merchant lacks in an env.

    It reads Postgres and settings only: it is called by each ``PUT /v1/merchant/providers``.
    """

    missing: Callable[[Runtime, str, Env], Awaitable[Sequence[Missing]]]


async def missing_of(runtime: Runtime, merchant_id: str, env: Env) -> list[Missing]:
    """What a merchant lacks in an env, by all enabled plugins."""
    return [one for need in runtime.contributed(Need) for one in await need.missing(runtime, merchant_id, env)]
