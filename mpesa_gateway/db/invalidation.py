"""Short-lived cache, invalidated by notifications of Postgres."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

if TYPE_CHECKING:
    from mpesa_gateway.db.engine import Database

log = structlog.get_logger(__name__)

V = TypeVar("V")

_SECONDS = 1.0
"""Limits the effect of a lost notification."""

_RENEWED = 0.75
"""After this share, one caller refreshes the entry: expiry causes one query."""

_AWAY = 1.0
"""Seconds between attempts to listen."""

_MOST = 10_000
"""A full cache is cleared."""


class InvalidationListener:
    """Listens on its own connection, without which nothing is cached."""

    def __init__(self, db: "Database") -> None:
        self._db = db
        self._callbacks: dict[str, list[Callable[[str], None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._times = 0
        self.is_listening = False

    @property
    def is_connected(self) -> int | None:
        """Return the connection's number, None without one and in transactions."""
        return self._times if self.is_listening and not self._db.in_transaction else None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def on(self, topic: str, forget: Callable[[str], None]) -> None:
        self._callbacks.setdefault(topic, []).append(forget)

    def notify(self, topic: str, key: str) -> None:
        """Call it after commit."""
        for forget in self._callbacks.get(topic, ()):
            forget(key)

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except Exception as problem:  # noqa: BLE001 - without a connection nothing is cached
                log.info("invalidations_disconnected", error=type(problem).__name__)
            await asyncio.sleep(_AWAY)

    async def _listen_once(self) -> None:
        lost = asyncio.Event()
        connection = await self._db.connect()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(f"{self._db.schema}_changed", self._take)
            self._times += 1
            self.is_listening = True
            await lost.wait()
        finally:
            self.is_listening = False
            connection.terminate()

    def _take(self, _: Any, __: int, ___: str, payload: object) -> None:
        topic, _, key = str(payload).partition(":")
        self.notify(topic, key)


@dataclass
class _Found(Generic[V]):
    value: V
    hearing: int
    renew_at: float
    until: float
    is_being_renewed: bool = False


class InvalidatedCache(Generic[V]):
    """Caches for a second while the listener is connected."""

    def __init__(
        self, changes: InvalidationListener, seconds: float = _SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._changes = changes
        self._seconds = seconds
        self._clock = clock
        self._found: dict[str, _Found[V]] = {}
        self._changed = 0

    async def get(self, key: str, find: Callable[[], Awaitable[V | None]]) -> V | None:
        hearing, now = self._changes.is_connected, self._clock()
        known = self._found.get(key)
        if known is not None and known.hearing == hearing and now < known.until:
            if now < known.renew_at or known.is_being_renewed:
                return known.value
            known.is_being_renewed = True
        before = self._changed
        found = await find()
        # The result may predate a change.
        if (
            found is not None
            and hearing is not None
            and hearing == self._changes.is_connected
            and before == self._changed
        ):
            if len(self._found) >= _MOST:
                self._found.clear()
            self._found[key] = _Found(found, hearing, now + self._seconds * _RENEWED, now + self._seconds)
        return found

    def evict(self, key: str) -> None:
        self._changed += 1
        self._found.pop(key, None)

    def clear(self, _: str = "") -> None:
        self._changed += 1
        self._found.clear()
