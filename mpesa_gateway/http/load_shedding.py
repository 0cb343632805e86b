"""Concurrency limit for API calls; callbacks and health checks are always admitted."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from litestar import Litestar
from litestar.routes import HTTPRoute

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.call_slots import Slot, use_slot
from mpesa_gateway.config import HttpConfig
from mpesa_gateway.db.engine import reserve
from mpesa_gateway.errors import ServiceUnavailable
from mpesa_gateway.http.auth import PRIORITY
from mpesa_gateway.http.errors import refuse

log = structlog.get_logger(__name__)

CALLER = "mpesa_gateway_key_id"
"""Scope key: the API key's id, for fair shares."""

CROWDED = "mpesa_gateway_crowded"
"""Scope key: the server is above its connection limit."""

RETRY_AFTER = 1

_LOG_INTERVAL = 10.0

BUSY = "the gateway is busy, and nothing was done: try again, with the same Idempotency-Key, after Retry-After seconds"


class PriorityError(Exception):
    """An ordinary route below a priority route would be admitted like it."""


@dataclass(frozen=True, eq=False)
class _Waiter:
    caller: str
    admitted: asyncio.Future[bool]


class LoadShedder:
    """ASGI middleware; paths with ``priority`` are always admitted."""

    def __init__(
        self,
        app: ASGIApp,
        config: HttpConfig,
        *,
        priority: Callable[[str], bool],
        is_draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._at_once, self._most = config.max_concurrent, config.max_unanswered
        self._queue, self._wait = config.queue, config.wait
        self._has_priority = priority
        self._is_draining = is_draining
        self._each = max(1, self._most // 2)
        self._running: Counter[str] = Counter()
        self._waiting: deque[_Waiter] = deque()
        self._logged_at = -_LOG_INTERVAL
        self.working = 0
        """Excludes calls that wait for another server."""
        self.unanswered = 0
        """Includes calls that wait for another server."""
        self.rejected = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._is_draining() and scope.get("http_version", "1.1").startswith("1"):
            send = _closing(send)
        if self._has_priority(scope["path"]):
            with reserve():
                await self._app(scope, receive, send)
            return
        caller = str(scope.get(CALLER, ""))
        if not await self._enter(caller):
            await self._reject(send)
            return
        try:
            with use_slot(Slot(self)) as slot:
                await self._app(scope, slot.receiving(receive), slot.sending(send))
        finally:
            self._end_share(caller)

    async def _enter(self, caller: str) -> bool:
        """Returns False if no slot was free in time."""
        if self._has_room and not self._waiting and self._has_share(caller):
            self._start(caller)
            return True
        if len(self._waiting) >= self._queue and not self._shed_greediest(caller):
            return False
        turn = _Waiter(caller, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._admit_next()
        limit = asyncio.get_running_loop().call_later(self._wait, _time_out, turn.admitted)
        try:
            return await turn.admitted
        except asyncio.CancelledError:
            if turn.admitted.done() and not turn.admitted.cancelled() and turn.admitted.result():
                self.end(is_working=True)
                self._end_share(caller)
            raise
        finally:
            limit.cancel()
            if turn in self._waiting:
                self._waiting.remove(turn)

    @property
    def _has_room(self) -> bool:
        return self.working < self._at_once and self.unanswered < self._most

    def _has_share(self, caller: str) -> bool:
        return not caller or self._running[caller] < self._each

    def _shed_greediest(self, caller: str) -> bool:
        waiting = Counter(turn.caller for turn in self._waiting if turn.caller and not turn.admitted.done())
        if not caller or not waiting:
            return False
        greediest, most = waiting.most_common(1)[0]
        if waiting[caller] + 1 >= most:
            return False
        last = next(turn for turn in reversed(self._waiting) if turn.caller == greediest and not turn.admitted.done())
        self._waiting.remove(last)
        last.admitted.set_result(False)
        return True

    def _start(self, caller: str) -> None:
        self.working += 1
        self.unanswered += 1
        if caller:
            self._running[caller] += 1

    def _end_share(self, caller: str) -> None:
        if not caller:
            return
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        self._admit_next()

    def end(self, *, is_working: bool) -> None:
        self.unanswered -= 1
        self.working -= is_working
        self._admit_next()

    def release(self) -> None:
        self.working -= 1
        self._admit_next()

    def reacquire(self) -> None:
        """Take the slot again, even above the limit."""
        self.working += 1

    def _admit_next(self) -> None:
        while self._has_room:
            ready = [turn for turn in self._waiting if not turn.admitted.done() and self._has_share(turn.caller)]
            if not ready:
                return
            # The caller with the fewest running calls is next, so that a burst delays only its caller.
            turn = min(ready, key=lambda each: self._running[each.caller] if each.caller else 0)
            self._waiting.remove(turn)
            self._start(turn.caller)
            turn.admitted.set_result(True)

    async def _reject(self, send: Send) -> None:
        self.rejected += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
            log.warning("calls_shed", working=self.working, waiting=self.waiting, so_far=self.rejected)
        await refuse(send, ServiceUnavailable(BUSY, retry_after=RETRY_AFTER))


def keyless_limits(config: HttpConfig) -> HttpConfig:
    """Return the limits for keyless requests: a quarter of those for API calls."""
    return msgspec.structs.replace(
        config,
        max_concurrent=max(1, config.max_concurrent // 4),
        max_unanswered=max(1, config.max_unanswered // 4),
        queue=config.queue // 4,
    )


def _time_out(turn: "asyncio.Future[bool]") -> None:
    if not turn.done():
        turn.set_result(False)


def _closing(send: Send) -> Send:
    """The client reconnects to another process."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return last


def find_priority_paths(app: Litestar) -> Callable[[str], bool]:
    """Return a predicate for priority paths that needs no router. Raises PriorityError."""
    exact: set[str] = set()
    below: set[str] = set()
    ordinary: list[str] = []
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        marks = {bool(handler.opt.get(PRIORITY)) for handler in route.route_handlers if not _is_options(handler)}
        if False in marks:
            ordinary.append(route.path)
        if True not in marks:
            continue
        if "{" in route.path:
            below.add(route.path.partition("{")[0])
        else:
            exact.add(route.path)
    _check(ordinary, exact, below)
    prefixes = tuple(below)

    def has_priority(path: str) -> bool:
        return path.startswith(prefixes) or (path.rstrip("/") or "/") in exact

    return has_priority


def _is_options(handler: Any) -> bool:
    return bool(handler.http_methods == {"OPTIONS"})


def _check(ordinary: Iterable[str], exact: set[str], below: set[str]) -> None:
    for path in ordinary:
        if path in exact or path.startswith(tuple(below)):
            raise PriorityError(f"{path}: a priority route needs its own path, without ordinary routes below it")
