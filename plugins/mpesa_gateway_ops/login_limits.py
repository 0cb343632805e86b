"""Limits on password guesses, by address, account and device.

A browser that has signed in holds a device cookie. Its failures count for the device alone, so that strangers' guesses
do not lock it out (OWASP, "Device cookies").
"""

import asyncio
import hashlib
import hmac
import os
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from mpesa_gateway.call_slots import released_slot
from mpesa_gateway.client_ip import client_network
from mpesa_gateway.clock import Clock
from mpesa_gateway.errors import TooManyFailures
from mpesa_gateway.http.work_limits import WorkLimit
from mpesa_gateway.ids import Ids
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import OPERATOR_FORMS, GatewaySecrets
from mpesa_gateway.security.rate_limits import ACCOUNT, DEVICE, LOGIN, RateLimits

T = TypeVar("T")

DEVICE_LIFETIME = timedelta(days=365)

_EACH, _QUEUE, _WAIT = 2, 8, 3.0
"""Concurrent logins of one address, waiting logins in all, and seconds to wait. Hashes run one at a time: each takes 64
MiB.
"""

_PAUSE = 1.0
"""Seconds after which a login is rejected when the queue is full."""

_NICE = 10

_COOKIE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})\Z", re.ASCII)


@dataclass(frozen=True)
class LoginAttempt:
    """One guess: ``name`` in lower case; ``device`` is None for an unknown browser."""

    name: str
    address: str
    device: str | None

    @property
    def counters(self) -> tuple[tuple[str, str], ...]:
        """The counters of a failure. Unknown names count too."""
        if self.device is not None:
            return ((DEVICE, self.device),)
        return ((LOGIN, client_network(self.address)), (ACCOUNT, hashlib.sha256(self.name.encode()).hexdigest()[:32]))


class LoginLimits:
    """Serializes guesses. Known devices have a queue of their own."""

    def __init__(self, *, clock: Clock, ids: Ids, limits: RateLimits, vault: GatewaySecrets, audit: Audit) -> None:
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._vault = vault
        self._audit = audit
        self._strangers = WorkLimit(1, each=_EACH, queue=_QUEUE, wait=_WAIT, pause=_PAUSE)
        self._devices = WorkLimit(1, each=_EACH, queue=_QUEUE, wait=_WAIT, pause=_PAUSE)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="password", initializer=_lower_priority)

    async def run(self, hash_or_verify: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, hash_or_verify)

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    def guess(self, name: str, address: str, cookie: Secret) -> LoginAttempt:
        return LoginAttempt(name, address, self._read(name, cookie))

    @asynccontextmanager
    async def judge(self, guess: LoginAttempt) -> AsyncGenerator[None]:
        """Judge a guess within the block, outside the request's slot.

        Raises TooManyFailures, worded alike for every account, and ServiceUnavailable if the queue is full.
        """
        turns, key = (
            (self._strangers, client_network(guess.address)) if guess.device is None else (self._devices, guess.device)
        )
        limits = self._limits
        if any(limits.blocked_seconds(what, counted) for what, counted in guess.counters):
            # A limit known to this process takes no turn.
            await self._refuse_limited(guess)
        with released_slot():
            # Checked within the turn, so that concurrent guesses cannot all pass before the first one counts.
            async with turns.acquire(key):
                await self._refuse_limited(guess)
                yield

    async def _refuse_limited(self, guess: LoginAttempt) -> None:
        try:
            for what, counted in guess.counters:
                await self._limits.check_failures(what, counted)
        except TooManyFailures:
            await self._audit.observe("person.sign_in_limited", merchant_id=None, actor=f"address:{guess.address}")
            raise

    async def record_failure(self, guess: LoginAttempt) -> None:
        for what, counted in guess.counters:
            with suppress(TooManyFailures):
                # The next guess is rejected.
                await self._limits.count_failure(what, counted)

    def device_cookie(self, name: str) -> Secret:
        until = str(int((self._clock.now() + DEVICE_LIFETIME).timestamp()))
        nonce = self._ids.token(16).hex()
        return Secret(f"{until}.{nonce}.{self._mac(name, until, nonce)}")

    def _read(self, name: str, cookie: Secret) -> str | None:
        found = _COOKIE.match(cookie.reveal())
        if found is None or int(found[1]) <= self._clock.now().timestamp():
            return None
        return found[2] if hmac.compare_digest(self._mac(name, found[1], found[2]), found[3]) else None

    def _mac(self, name: str, until: str, nonce: str) -> str:
        text = f"device\0{until}\0{nonce}\0{name}"
        return hmac.new(self._vault.secret(OPERATOR_FORMS), text.encode(), hashlib.sha256).hexdigest()


def _lower_priority() -> None:
    if sys.platform == "linux":
        with suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own + _NICE)
