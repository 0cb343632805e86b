"""Lets in as many API calls at a time as this process can work on; callbacks and health checks always have their place.

A call beyond that waits a moment for its turn, or is told to come back: half an answer to everybody is no answer.
"""

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
"""In the scope: whose call it is, by the id of the API key, so that one of them leaves places to the others."""

CROWDED = "mpesa_gateway_crowded"
"""In the scope: whether the server has more connections than it is to serve."""

RETRY_AFTER = 1
"""Seconds after which whoever was turned away may try again."""

_SAY_AGAIN = 10.0
"""Seconds between two lines in the log about a process that turns calls away."""

BUSY = "the gateway is busy, and nothing was done: try again, with the same Idempotency-Key, after Retry-After seconds"


class PriorityError(Exception):
    """An ordinary route lies below a route with priority, and would be let in like it."""


@dataclass(frozen=True, eq=False)
class _Waiter:
    """A call that waits; ``comes`` says whether its turn has come."""

    who: str
    comes: asyncio.Future[bool]


class LoadShedder:
    """ASGI middleware. ``priority`` says which paths are let in at any time."""

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
        self._begun: Counter[str] = Counter()
        self._waiting: deque[_Waiter] = deque()
        self._said_at = -_SAY_AGAIN
        self.working = 0
        """Calls that are worked on at this moment."""
        self.unanswered = 0
        """Those, and the calls that wait for somebody else."""
        self.turned_away = 0
        """Calls that were turned away since the start."""

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request, or turn it away."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._is_draining() and scope.get("http_version", "1.1").startswith("1"):
            send = _closing(send)
        if self._has_priority(scope["path"]):
            with reserve():
                await self._app(scope, receive, send)
            return
        who = str(scope.get(CALLER, ""))
        if not await self._enter(who):
            await self._reject(send)
            return
        try:
            with use_slot(Slot(self)) as place:
                await self._app(scope, place.receiving(receive), place.sending(send))
        finally:
            self._end_share(who)

    async def _enter(self, who: str) -> bool:
        """Take a place, now or within the time that one may wait; gives whether there was one."""
        if self._has_room and not self._waiting and self._has_share(who):
            self._begin(who)
            return True
        if len(self._waiting) >= self._queue and not self._shed_oldest(who):
            return False
        turn = _Waiter(who, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._admit_next()
        limit = asyncio.get_running_loop().call_later(self._wait, _give_up, turn.comes)
        try:
            return await turn.comes
        except asyncio.CancelledError:
            if turn.comes.done() and not turn.comes.cancelled() and turn.comes.result():
                self.end(is_working=True)
                self._end_share(who)
            raise
        finally:
            limit.cancel()
            if turn in self._waiting:
                self._waiting.remove(turn)

    @property
    def _has_room(self) -> bool:
        return self.working < self._at_once and self.unanswered < self._most

    def _has_share(self, who: str) -> bool:
        """Whether a caller has begun less than half of what the process may have begun: the rest is for others."""
        return not who or self._begun[who] < self._each

    def _shed_oldest(self, who: str) -> bool:
        """Turn away the last call of the caller who has most of them waiting, for one who has fewer."""
        waiting = Counter(turn.who for turn in self._waiting if turn.who and not turn.comes.done())
        if not who or not waiting:
            return False
        greediest, most = waiting.most_common(1)[0]
        if waiting[who] + 1 >= most:
            return False
        last = next(turn for turn in reversed(self._waiting) if turn.who == greediest and not turn.comes.done())
        self._waiting.remove(last)
        last.comes.set_result(False)
        return True

    def _begin(self, who: str) -> None:
        self.working += 1
        self.unanswered += 1
        if who:
            self._begun[who] += 1

    def _end_share(self, who: str) -> None:
        """A caller's call has been answered: its next one may begin."""
        if not who:
            return
        self._begun[who] -= 1
        if not self._begun[who]:
            del self._begun[who]
        self._admit_next()

    def end(self, *, is_working: bool) -> None:
        """A call has been answered: who has waited longest takes its place."""
        self.unanswered -= 1
        self.working -= is_working
        self._admit_next()

    def release(self) -> None:
        """Give a place up for a while: who has waited longest takes it."""
        self.working -= 1
        self._admit_next()

    def reacquire(self) -> None:
        """Take a place again that was left, though there be none."""
        self.working += 1

    def _admit_next(self) -> None:
        while self._has_room:
            able = [turn for turn in self._waiting if not turn.comes.done() and self._has_share(turn.who)]
            if not able:
                return
            # Who has begun least is next, and of equals who came first: one caller's crowd delays itself.
            turn = min(able, key=lambda each: self._begun[each.who] if each.who else 0)
            self._waiting.remove(turn)
            self._begin(turn.who)
            turn.comes.set_result(True)

    async def _reject(self, send: Send) -> None:
        self.turned_away += 1
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= _SAY_AGAIN:
            self._said_at = now
            log.warning("calls_shed", working=self.working, waiting=self.waiting, so_far=self.turned_away)
        await refuse(send, ServiceUnavailable(BUSY, retry_after=RETRY_AFTER))


def for_pages(config: HttpConfig) -> HttpConfig:
    """The bounds of what needs no API key, a quarter of those of API calls: nothing of it takes a call's place."""
    return msgspec.structs.replace(
        config,
        max_concurrent=max(1, config.max_concurrent // 4),
        max_unanswered=max(1, config.max_unanswered // 4),
        queue=config.queue // 4,
    )


def _give_up(turn: "asyncio.Future[bool]") -> None:
    if not turn.done():
        turn.set_result(False)


def _closing(send: Send) -> Send:
    """The answer is the last one on its connection: the next request goes to a process that stays."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return last


def priority_of(app: Litestar) -> Callable[[str], bool]:
    """Whether a path is one of a route with priority. Raises PriorityError for an ordinary route below such a one.

    It is asked before anything is routed, so that turning a call away costs as little as can be.
    """
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
            raise PriorityError(
                f"{path}: give routes with priority addresses of their own, and no ordinary route below"
            )
