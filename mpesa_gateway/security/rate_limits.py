"""Limits on failed authentication and on calls."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter

from mpesa_gateway.batching import Batcher
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.errors import NotStarted, RateLimited, TooManyFailures
from mpesa_gateway.sentinel import primary_pool

log = structlog.get_logger(__name__)

_PATIENCE = 0.25
"""Seconds before a request passes uncounted."""

AUTH, LOGIN, ACCOUNT, DEVICE, METRICS = "auth", "login", "account", "device", "metrics"
"""API keys and passwords by address, passwords also by account and device."""

_MOST = 20_000
"""Addresses and accounts per process."""

_PAUSE = 2.0
"""Seconds after a timeout of Valkey."""


class RateLimits:
    """Limits. Without Valkey, calls with a valid key pass, and each process counts failures itself."""

    def __init__(self, config: GatewayConfig, clock: Clock) -> None:
        self._valkey = config.valkey
        self._storage: RedisStorage | None = None
        limits = config.limits
        self._auth_failures, self._account_failures = limits.auth_failures, limits.account_failures
        self._window = limits.auth_failures_window
        self._known = _Failures(self._window)
        self._call_limit: RateLimitItem = RateLimitItemPerSecond(
            limits.burst, max(1, round(limits.burst / limits.requests_per_second))
        )
        self._clock = clock
        self._paused_until = 0.0
        self._counted: Batcher[str, None] = Batcher(self._count_calls, lanes=1)

    async def start(self) -> None:
        """Does not connect. Raises ValueError for an address without a host."""
        url = self._valkey.url
        if url is None:
            raise ValueError("valkey.url is not set")
        address = url.reveal()
        if address.startswith("redis"):
            address = "valkey" + address.removeprefix("redis")
        options: dict[str, Any] = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
        if self._valkey.sentinels:
            options = {"connection_pool": primary_pool(self._valkey, **options)}
        self._storage = RedisStorage(
            "async+" + address, implementation="valkey", key_prefix=f"{self._valkey.prefix}:limits", **options
        )

    async def stop(self) -> None:
        storage, self._storage = self._storage, None
        if storage is not None:
            bridge: Any = storage.bridge
            await bridge.storage.aclose(close_connection_pool=True)

    def blocked_seconds(self, what: str, client: str) -> int:
        """Return seconds until the next attempt, by this process's count."""
        return self._known.over(what, client, self._most(what))

    async def check_failures(self, what: str, client: str) -> None:
        """Raise TooManyFailures. Counts nothing."""
        retry_after = self.blocked_seconds(what, client)
        if not retry_after:
            retry_after = await self._over(
                FixedWindowRateLimiter, self._failure_limit(what), what, client, counts=False
            )
            if retry_after:
                self._known.close(what, client, retry_after, self._most(what))
        if retry_after:
            raise TooManyFailures("too many failed attempts: wait", retry_after=retry_after)

    async def count_failure(self, what: str, client: str) -> None:
        here = self._known.hit(what, client, self._most(what))
        retry_after = await self._over(FixedWindowRateLimiter, self._failure_limit(what), what, client)
        if retry_after:
            self._known.close(what, client, retry_after, self._most(what))
        if retry_after := max(retry_after, here):
            raise TooManyFailures("too many failed attempts: check what you send, and wait", retry_after=retry_after)

    def _most(self, what: str) -> int:
        return self._account_failures if what == ACCOUNT else self._auth_failures

    def _failure_limit(self, what: str) -> RateLimitItem:
        return RateLimitItemPerSecond(self._most(what), self._window)

    async def count_call(self, key_id: str) -> None:
        """Raise RateLimited."""
        if not self._is_valkey_paused():
            await self._counted.submit(key_id)

    async def count_action(self, action: str, client: str, per_minute: int) -> None:
        retry_after = await self._over(
            SlidingWindowCounterRateLimiter, RateLimitItemPerMinute(per_minute), "act", action, client
        )
        if retry_after:
            raise RateLimited(f"at most {per_minute} of these a minute: wait and try again", retry_after=retry_after)

    async def _count_calls(self, key_ids: Sequence[str]) -> list[Exception | None]:
        """Calls of one key are counted together, one by one at the limit."""
        over: dict[str, int] = {}
        for key_id, calls in Counter(key_ids).items():
            if calls > 1 and not await self._over(
                SlidingWindowCounterRateLimiter, self._call_limit, "key", key_id, cost=calls
            ):
                over[key_id] = 0
        results: list[Exception | None] = []
        for key_id in key_ids:
            retry_after = over.get(key_id)
            if retry_after is None:
                retry_after = await self._over(SlidingWindowCounterRateLimiter, self._call_limit, "key", key_id)
            results.append(
                RateLimited("too many calls with this API key: slow down and try again", retry_after=retry_after)
                if retry_after
                else None
            )
        return results

    def _is_valkey_paused(self) -> bool:
        return asyncio.get_running_loop().time() < self._paused_until

    async def _over(
        self, strategy: type[RateLimiter], item: RateLimitItem, *identifiers: str, counts: bool = True, cost: int = 1
    ) -> int:
        """Return 0 within the limit, else seconds until a retry. Raises NotStarted."""
        if self._is_valkey_paused():
            return 0
        if self._storage is None:
            raise NotStarted
        limiter = strategy(self._storage)
        try:
            async with asyncio.timeout(_PATIENCE * 2):
                if await (limiter.hit if counts else limiter.test)(item, *identifiers, cost=cost):
                    return 0
                window = await limiter.get_window_stats(item, *identifiers)
        except Exception as problem:  # noqa: BLE001 - requests pass if counting fails
            self._paused_until = asyncio.get_running_loop().time() + _PAUSE
            log.warning("limits_unavailable", error=type(problem).__name__)
            return 0
        return max(1, math.ceil(window.reset_time - self._clock.now().timestamp()))


class _Failures:
    def __init__(self, window: int, now: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._now = now
        self._counts: dict[tuple[str, str], _Count] = {}

    def over(self, what: str, client: str, most: int) -> int:
        found = self._counts.get((what, client))
        if found is None or found.failures < most:
            return 0
        return max(0, math.ceil(found.until - self._now()))

    def hit(self, what: str, client: str, most: int) -> int:
        found = self._open(what, client)
        found.failures += 1
        return math.ceil(found.until - self._now()) if found.failures > most else 0

    def close(self, what: str, client: str, seconds: int, most: int) -> None:
        found = self._open(what, client)
        found.failures, found.until = max(found.failures, most), self._now() + seconds

    def _open(self, what: str, client: str) -> "_Count":
        now = self._now()
        found = self._counts.get((what, client))
        if found is None or found.until <= now:
            if len(self._counts) >= _MOST:
                self._forget(now)
            found = self._counts[what, client] = _Count(0, now + self._window)
        return found

    def _forget(self, now: float) -> None:
        for key in [key for key, count in self._counts.items() if count.until <= now]:
            del self._counts[key]
        # Evict keys with the fewest failures.
        for key in sorted(self._counts, key=lambda each: self._counts[each].failures)[: len(self._counts) - _MOST // 2]:
            del self._counts[key]


@dataclass
class _Count:
    failures: int
    until: float
