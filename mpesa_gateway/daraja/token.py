"""Daraja's access token: one for all processes, because a new one makes the one before it invalid."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from copy import copy
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog
from valkey.exceptions import ValkeyError

from mpesa_gateway.call_slots import released_slot
from mpesa_gateway.clock import Clock
from mpesa_gateway.security.sealing import Sealer, UnsealError

log = structlog.get_logger(__name__)

_EARLY = timedelta(minutes=5)
"""How long before its end a token is replaced, so that a call under way does not outlive it."""

_PATIENCE = 0.5
"""Seconds that Valkey may take before we go on without it."""

_LOCK_SECONDS = 15
"""For how long one process may be fetching while the others wait for what it brings."""

_LOOK_AGAIN = 0.1
"""Seconds between looks for what another process fetches."""

_NO_VALKEY = "valkey is away"
"""Stands for a lock where there is nobody to ask for one."""

_DELETE_OWN = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
"""Compare and delete in one step, on the server."""


class AccessToken(msgspec.Struct, frozen=True):
    """An access token, the moment from which it is not used any more, and when it was fetched, in UTC."""

    text: str
    until: datetime
    since: datetime | None = None
    """None where a release that did not note it has fetched it."""


Fetch = Callable[[], Awaitable[AccessToken]]


class TokenUnavailable(Exception):
    """A fetch that brought no answer, whoever's secret it showed."""


_NONE: tuple[int, TokenUnavailable | None] = (0, None)


class AccessTokens:
    """Tokens by whose they are. In this process, then in Valkey (sealed), then from Daraja, fetched once."""

    def __init__(
        self, clock: Clock, valkey_client: Any, sealer: Sealer, prefix: str, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._clock = clock
        self._valkey = valkey_client
        self._sealer = sealer
        self._prefix = prefix
        self._random_bytes = random_bytes
        self._tokens: dict[str, AccessToken] = {}
        self._unanswered: dict[str, tuple[int, TokenUnavailable | None]] = {}
        """How many fetches in a row brought no answer, and the last such failure, by owner."""
        self._locks: dict[str, asyncio.Lock] = {}

    @staticmethod
    def owner(base_url: str, consumer_key: str) -> str:
        """Whose a token is, as a name that tells nothing."""
        return hashlib.sha256(f"{base_url}\0{consumer_key}".encode()).hexdigest()[:32]

    def early(self, lifetime: timedelta) -> timedelta:
        """How long a token of this lifetime is used: all but the last five minutes, or half of a short one."""
        return max(lifetime - _EARLY, lifetime / 2)

    async def get(self, owner: str, fetch: Fetch) -> str:
        """A valid token; raises what ``fetch`` raises.

        Calls that waited for a fetch that brought no answer raise its NoAnswer too: one after the other, each would
        wait for as long again.
        """
        token = self._tokens.get(owner)
        if token is not None and token.until > self._clock.now():
            return token.text
        # Those that wait for a token of one account leave their places to calls of others.
        with released_slot():
            return await self._get_once(owner, fetch)

    async def _get_once(self, owner: str, fetch: Fetch) -> str:
        """A valid token, fetched by one of those who ask at the same time."""
        before, _ = self._unanswered.get(owner, _NONE)
        async with self._locks.setdefault(owner, asyncio.Lock()):
            token = self._tokens.get(owner)
            if token is not None and token.until > self._clock.now():
                return token.text
            count, failure = self._unanswered.get(owner, _NONE)
            if failure is not None and count > before:
                raise copy(failure).with_traceback(None)
            try:
                token = self._opened(owner, await self._sealed(owner)) or await self._fetch_once(owner, fetch)
            except TokenUnavailable as problem:
                self._unanswered[owner] = (count + 1, problem)
                raise
            self._unanswered.pop(owner, None)
            self._tokens[owner] = token
            return token.text

    async def until(self, owner: str) -> datetime | None:
        """Until when the present token of an owner is used, None where there is none."""
        token = self._tokens.get(owner) or self._opened(owner, await self._sealed(owner))
        return token.until if token is not None and token.until > self._clock.now() else None

    def held(self) -> tuple[int, timedelta]:
        """How many tokens this process holds and still uses, and how old the oldest of them is."""
        now = self._clock.now()
        used = [token for token in self._tokens.values() if token.until > now]
        ages = [now - token.since for token in used if token.since is not None]
        return len(used), max(ages, default=timedelta())

    async def drop(self, owner: str, text: str) -> None:
        """Forget a token that Daraja refused, unless another has taken its place."""
        held = self._tokens.get(owner)
        if held is not None and held.text == text:
            del self._tokens[owner]
        sealed = await self._sealed(owner)
        shared = self._opened(owner, sealed)
        if shared is not None and shared.text == text:
            await self._delete(self._key(owner), sealed)

    async def put(self, owner: str, token: AccessToken) -> None:
        """Share a token that was fetched on purpose: it has made the one before it invalid."""
        self._tokens[owner] = token
        await self._share(owner, token)

    async def _fetch_once(self, owner: str, fetch: Fetch) -> AccessToken:
        """Fetch, or wait for the process that is at it; without Valkey, each process fetches for itself."""
        lock, mark = self._key(owner) + ":lock", self._random_bytes(16)
        is_ours = False
        for _ in range(int(_LOCK_SECONDS / _LOOK_AGAIN)):
            is_ours = await self._ask(
                lambda: self._valkey.set(lock, mark, nx=True, ex=_LOCK_SECONDS), otherwise=_NO_VALKEY
            )
            # Whoever had the lock before us may have left what it fetched.
            shared = self._opened(owner, await self._sealed(owner))
            if shared is not None:
                if is_ours:
                    await self._delete(lock, mark)
                return shared
            if is_ours:
                break
            await asyncio.sleep(_LOOK_AGAIN)
        try:
            token = await fetch()
            await self._share(owner, token)
            return token
        finally:
            if is_ours:
                await self._delete(lock, mark)

    async def _sealed(self, owner: str) -> bytes | None:
        sealed = await self._ask(lambda: self._valkey.get(self._key(owner)))
        return sealed if isinstance(sealed, bytes) else None

    def _opened(self, owner: str, sealed: bytes | None) -> AccessToken | None:
        if sealed is None:
            return None
        try:
            token = msgspec.json.decode(
                self._sealer.open(sealed.decode(), aad=("daraja", "token", owner)), type=AccessToken
            )
        except (UnsealError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return token if token.until > self._clock.now() else None

    async def _delete(self, key: str, value: bytes | None) -> None:
        """Delete a key that still has this value: another process may have put its own there."""
        await self._ask(lambda: self._valkey.eval(_DELETE_OWN, 1, key, value))

    async def _share(self, owner: str, token: AccessToken) -> None:
        seconds = int((token.until - self._clock.now()).total_seconds())
        if seconds > 0:
            sealed = self._sealer.seal(msgspec.json.encode(token).decode(), aad=("daraja", "token", owner))
            await self._ask(lambda: self._valkey.set(self._key(owner), sealed, ex=seconds))

    def _key(self, owner: str) -> str:
        return f"{self._prefix}:daraja_token:{owner}"

    async def _ask(self, command: Callable[[], Awaitable[Any]], otherwise: Any = None) -> Any:
        if self._valkey is None:
            return otherwise
        try:
            async with asyncio.timeout(_PATIENCE):
                return await command()
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.warning("token_cache_unavailable", error=type(problem).__name__)
            return otherwise
