"""A quick no to callbacks that we have had: remembered in Valkey, and in Postgres for when Valkey has forgotten."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from valkey.exceptions import ValkeyError

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

_PATIENCE = 0.25
"""Seconds that a callback waits for Valkey before Postgres alone decides."""

_REST = 2.0
"""Seconds without asking after Valkey did not answer."""


class Dedup:
    """Fingerprints of committed callbacks. Valkey may be away or empty: the unique constraint decides then."""

    def __init__(self, gateway: "Gateway", keep: timedelta) -> None:
        self._gateway = gateway
        self._keep = keep
        self._resting_until = 0.0

    async def has_seen(self, fingerprint: bytes) -> bool:
        """Whether a callback with this fingerprint is known to be committed."""
        return bool(await self._ask(self._gateway.valkey.exists, self._key(fingerprint)))

    async def remember(self, fingerprint: bytes) -> None:
        """Note a callback that has been committed."""
        await self._ask(self._gateway.valkey.set, self._key(fingerprint), b"1", self._keep)

    def _key(self, fingerprint: bytes) -> str:
        return f"{self._gateway.config.valkey.prefix}:callback:{fingerprint.hex()}"

    async def _ask(self, command: object, *args: object) -> object:
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await command(*args)  # type: ignore[operator]
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._resting_until = loop.time() + _REST
            log.warning("dedup_unavailable", error=type(problem).__name__)
            return None
