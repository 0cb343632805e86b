"""A quick no to callbacks that we have had: remembered in Valkey, and in Postgres for when Valkey has forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import structlog
from valkey.exceptions import ValkeyError

from mpesa_gateway.runtime import Runtime

log = structlog.get_logger(__name__)

_PATIENCE = 0.25
"""Seconds that a callback waits for Valkey before Postgres alone decides."""

_REST = 2.0
"""Seconds without asking after Valkey did not answer."""


class Dedup:
    """Fingerprints of committed callbacks. Valkey may be away or empty: the unique constraint decides then."""

    def __init__(self, gateway: Runtime, keep: timedelta) -> None:
        self._gateway = gateway
        self._keep = keep
        self._resting_until = 0.0
        self._noting: set[asyncio.Task[object]] = set()

    async def seen_among(self, fingerprints: Sequence[bytes]) -> set[bytes]:
        """Those of these fingerprints whose callbacks are known to be committed."""
        found = await self._ask(self._gateway.valkey.mget, [self._key(fingerprint) for fingerprint in fingerprints])
        marks = cast("list[bytes | None]", found or [None] * len(fingerprints))
        return {fingerprint for fingerprint, mark in zip(fingerprints, marks, strict=True) if mark is not None}

    def remember(self, fingerprints: Sequence[bytes]) -> None:
        """Note callbacks that have been committed. Nobody waits for it: Postgres knows them."""
        if fingerprints:
            pipeline = self._gateway.valkey.pipeline(transaction=False)
            for fingerprint in fingerprints:
                pipeline.set(self._key(fingerprint), b"1", ex=self._keep)
            task = asyncio.create_task(self._ask(pipeline.execute))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)

    async def settle(self) -> None:
        """Wait until everything is noted."""
        await asyncio.gather(*self._noting)

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
