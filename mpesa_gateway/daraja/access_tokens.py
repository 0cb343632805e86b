"""Daraja's access tokens, shared by all processes because a new token invalidates the previous one."""

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

_MARGIN = timedelta(minutes=5)
"""Tokens are replaced this long before expiry, so that calls in progress can finish."""

_VALKEY_TIMEOUT = 0.5
"""Seconds."""

_LOCK_SECONDS = 15
"""Seconds for which one process may fetch while others wait."""

_POLL_SECONDS = 0.1

_NO_VALKEY = "no lock"
"""Replaces the lock without Valkey."""

_DELETE_OWN = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class AccessToken(msgspec.Struct, frozen=True):
    """``until`` is when its use ends, ``since`` when it was fetched, in UTC."""

    text: str
    until: datetime
    since: datetime | None = None
    """None if fetched by an older release."""


Fetch = Callable[[], Awaitable[AccessToken]]


class TokenUnavailable(Exception):
    """The token request got no answer."""


_NO_FAILURE: tuple[int, TokenUnavailable | None] = (0, None)


class AccessTokens:
    """Tokens by owner, from memory, from Valkey (sealed), or fetched from Daraja by one caller."""

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
        """Consecutive unanswered fetches and the last failure."""
        self._locks: dict[str, asyncio.Lock] = {}

    @staticmethod
    def owner(base_url: str, consumer_key: str, consumer_secret: str) -> str:
        """Return a hash of the account.

        It covers the secret, because Daraja does not check the secret of a call with a token.
        """
        return hashlib.sha256(f"{base_url}\0{consumer_key}\0{consumer_secret}".encode()).hexdigest()[:32]

    def usable_lifetime(self, lifetime: timedelta) -> timedelta:
        """Return the time of use: all but the last five minutes, or half of a short lifetime."""
        return max(lifetime - _MARGIN, lifetime / 2)

    async def get(self, owner: str, fetch: Fetch) -> str:
        """Return a valid token. Raises what ``fetch`` raises.

        Waiting calls raise the TokenUnavailable of an unanswered fetch instead of fetching in turn.
        """
        token = self._tokens.get(owner)
        if token is not None and token.until > self._clock.now():
            return token.text
        with released_slot():
            return await self._get_once(owner, fetch)

    async def _get_once(self, owner: str, fetch: Fetch) -> str:
        before, _ = self._unanswered.get(owner, _NO_FAILURE)
        async with self._locks.setdefault(owner, asyncio.Lock()):
            token = self._tokens.get(owner)
            if token is not None and token.until > self._clock.now():
                return token.text
            count, failure = self._unanswered.get(owner, _NO_FAILURE)
            if failure is not None and count > before:
                raise copy(failure).with_traceback(None)
            try:
                token = self._unseal(owner, await self._read_sealed(owner)) or await self._fetch_once(owner, fetch)
            except TokenUnavailable as problem:
                self._unanswered[owner] = (count + 1, problem)
                raise
            self._unanswered.pop(owner, None)
            self._tokens[owner] = token
            return token.text

    async def expiry(self, owner: str) -> datetime | None:
        token = self._tokens.get(owner) or self._unseal(owner, await self._read_sealed(owner))
        return token.until if token is not None and token.until > self._clock.now() else None

    def count_tokens(self) -> tuple[int, timedelta]:
        """Return the number of valid tokens and the age of the oldest."""
        now = self._clock.now()
        used = [token for token in self._tokens.values() if token.until > now]
        ages = [now - token.since for token in used if token.since is not None]
        return len(used), max(ages, default=timedelta())

    async def drop(self, owner: str, text: str) -> None:
        """Delete a rejected token, unless it was replaced."""
        held = self._tokens.get(owner)
        if held is not None and held.text == text:
            del self._tokens[owner]
        sealed = await self._read_sealed(owner)
        shared = self._unseal(owner, sealed)
        if shared is not None and shared.text == text:
            await self._delete(self._key(owner), sealed)

    async def put(self, owner: str, token: AccessToken) -> None:
        self._tokens[owner] = token
        await self._share(owner, token)

    async def _fetch_once(self, owner: str, fetch: Fetch) -> AccessToken:
        """Fetch, or wait for the process with the lock; without Valkey, each process fetches."""
        lock, mark = self._key(owner) + ":lock", self._random_bytes(16)
        is_ours = False
        for _ in range(int(_LOCK_SECONDS / _POLL_SECONDS)):
            is_ours = await self._run(
                lambda: self._valkey.set(lock, mark, nx=True, ex=_LOCK_SECONDS), otherwise=_NO_VALKEY
            )
            # The previous lock holder may have stored a token.
            shared = self._unseal(owner, await self._read_sealed(owner))
            if shared is not None:
                if is_ours:
                    await self._delete(lock, mark)
                return shared
            if is_ours:
                break
            await asyncio.sleep(_POLL_SECONDS)
        try:
            token = await fetch()
            await self._share(owner, token)
            return token
        finally:
            if is_ours:
                await self._delete(lock, mark)

    async def _read_sealed(self, owner: str) -> bytes | None:
        sealed = await self._run(lambda: self._valkey.get(self._key(owner)))
        return sealed if isinstance(sealed, bytes) else None

    def _unseal(self, owner: str, sealed: bytes | None) -> AccessToken | None:
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
        await self._run(lambda: self._valkey.eval(_DELETE_OWN, 1, key, value))

    async def _share(self, owner: str, token: AccessToken) -> None:
        seconds = int((token.until - self._clock.now()).total_seconds())
        if seconds > 0:
            sealed = self._sealer.seal(msgspec.json.encode(token).decode(), aad=("daraja", "token", owner))
            await self._run(lambda: self._valkey.set(self._key(owner), sealed, ex=seconds))

    def _key(self, owner: str) -> str:
        return f"{self._prefix}:daraja_token:{owner}"

    async def _run(self, command: Callable[[], Awaitable[Any]], otherwise: Any = None) -> Any:
        if self._valkey is None:
            return otherwise
        try:
            async with asyncio.timeout(_VALKEY_TIMEOUT):
                return await command()
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.warning("token_cache_unavailable", error=type(problem).__name__)
            return otherwise
