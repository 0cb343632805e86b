"""How often clients may fail to authenticate and keys may call: counted in Valkey, let through without it."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter

from mpesa_gateway.clock import Clock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.errors import RateLimited, TooManyFailures
from mpesa_gateway.http.client_ip import read_address
from mpesa_gateway.sentinel import primary_pool
from mpesa_gateway.together import Together

log = structlog.get_logger(__name__)

_PATIENCE = 0.25
"""Seconds that a request waits for Valkey's count before it is let through uncounted."""

_REST = 2.0
"""Seconds without asking after Valkey did not answer."""


class Limits:
    """Counts in Valkey. When Valkey is away, requests pass: a limit must not stop payments."""

    def __init__(self, config: GatewayConfig, clock: Clock) -> None:
        url = config.valkey.url
        if url is None:
            raise ValueError("valkey.url is not set")
        address = url.reveal()
        if address.startswith("redis"):
            address = "valkey" + address.removeprefix("redis")
        options: dict[str, Any] = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
        if config.valkey.sentinels:
            options = {"connection_pool": primary_pool(config.valkey, **options)}
        storage = RedisStorage(
            "async+" + address, implementation="valkey", key_prefix=f"{config.valkey.prefix}:limits", **options
        )
        self._storage = storage
        self._failures = FixedWindowRateLimiter(storage)
        self._calls = SlidingWindowCounterRateLimiter(storage)
        limits = config.limits
        self._failure_limit: RateLimitItem = RateLimitItemPerSecond(limits.auth_failures, limits.auth_failures_window)
        # A burst of `burst` calls at once, `requests_per_second` in the long run.
        self._call_limit: RateLimitItem = RateLimitItemPerSecond(
            limits.burst, max(1, round(limits.burst / limits.requests_per_second))
        )
        self._clock = clock
        self._resting_until = 0.0
        self._counted: Together[str, None] = Together(self._count_calls, lanes=1)

    async def stop(self) -> None:
        """Close the connections."""
        bridge: Any = self._storage.bridge
        await bridge.storage.aclose(close_connection_pool=True)

    async def failed(self, address: str) -> None:
        """Count a failed authentication from this address. Raises TooManyFailures beyond the limit."""
        retry_after = await self._over(self._failures, self._failure_limit, "auth", _neighbourhood(address))
        if retry_after:
            raise TooManyFailures(
                "too many failed authentications from this address: check the API key and wait", retry_after=retry_after
            )

    async def admits(self, address: str) -> None:
        """Raise TooManyFailures for an address that has used up its failures: what can be guessed is not even checked.

        Counts nothing by itself.
        """
        retry_after = await self._over(
            self._failures, self._failure_limit, "auth", _neighbourhood(address), counts=False
        )
        if retry_after:
            raise TooManyFailures("too many failed authentications from this address: wait", retry_after=retry_after)

    async def called(self, key_id: str) -> None:
        """Count a call with this key. Raises RateLimited beyond the limit."""
        if not self._is_resting():
            await self._counted.ask(key_id)

    async def acted(self, action: str, who: str, per_minute: int) -> None:
        """Count an act that costs more than a call, by its name. Raises RateLimited beyond so many a minute."""
        retry_after = await self._over(self._calls, RateLimitItemPerMinute(per_minute), "act", action, who)
        if retry_after:
            raise RateLimited(f"at most {per_minute} of these a minute: wait and try again", retry_after=retry_after)

    async def _count_calls(self, key_ids: Sequence[str]) -> list[Exception | None]:
        """Count calls that came at the same time: those of one key in one question, and one by one at the limit."""
        over: dict[str, int] = {}
        for key_id, calls in Counter(key_ids).items():
            if calls > 1 and not await self._over(self._calls, self._call_limit, "key", key_id, cost=calls):
                over[key_id] = 0
        results: list[Exception | None] = []
        for key_id in key_ids:
            retry_after = over.get(key_id)
            if retry_after is None:
                retry_after = await self._over(self._calls, self._call_limit, "key", key_id)
            results.append(
                RateLimited("too many calls with this API key: slow down and try again", retry_after=retry_after)
                if retry_after
                else None
            )
        return results

    def _is_resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._resting_until

    async def _over(
        self, limiter: RateLimiter, item: RateLimitItem, *who: str, counts: bool = True, cost: int = 1
    ) -> int:
        """0 when within the limit, else the seconds until it is worth trying again."""
        if self._is_resting():
            return 0
        try:
            async with asyncio.timeout(_PATIENCE * 2):
                if await (limiter.hit if counts else limiter.test)(item, *who, cost=cost):
                    return 0
                window = await limiter.get_window_stats(item, *who)
        except Exception as problem:  # noqa: BLE001 - whatever is wrong with counting, requests pass
            self._resting_until = asyncio.get_running_loop().time() + _REST
            log.warning("limits_unavailable", error=type(problem).__name__)
            return 0
        return max(1, math.ceil(window.reset_time - self._clock.now().timestamp()))


def _neighbourhood(address: str) -> str:
    """Whom an address is counted with: alone, and with IPv6 all of its /64, which is what one client is given."""
    found = read_address(address)
    return str(IPv6Network((found, 64), strict=False)) if isinstance(found, IPv6Address) else address
