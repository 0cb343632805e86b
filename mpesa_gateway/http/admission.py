"""What every request meets before it may take a place among those that are worked on, cheapest checks first.

A request is *known* when its API key was right before, or when a plugin vouches for it. All others are strangers':
slowed above a rate, its body bounded with those of other strangers, its key looked up in turn. ADR 48 has the table.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from litestar import Litestar

from mpesa_gateway.asgi_types import Message, Receive, Send
from mpesa_gateway.client_ip import CLIENT, neighbourhood
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE
from mpesa_gateway.errors import (
    ApiError,
    InvalidKey,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    ServiceUnavailable,
    TooManyFailures,
)
from mpesa_gateway.http.auth import count_failure
from mpesa_gateway.http.documents import PATHS, Documents
from mpesa_gateway.http.errors import DATABASE_AWAY, NOT_ALLOWED, NOTHING_HERE, refuse
from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.http.load_shedding import BUSY, CALLER, CROWDED, RETRY_AFTER, LoadShedder
from mpesa_gateway.http.request_id import KNOWN, SLOWED
from mpesa_gateway.http.route_table import KnownRoute, RouteTable, RouteTraits
from mpesa_gateway.http.throttling import LONGEST, Throttle
from mpesa_gateway.http.work_limits import WorkLimit
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.api_keys import HEADER_HINT, id_of, is_well_formed
from mpesa_gateway.security.rate_limits import AUTH

_PROBE_DELAY = 0.5
"""Seconds that a health check is delayed at most: probes give up after a second."""

_NOTICEABLE = 0.01
"""Seconds that a request waits at least to count as slowed."""

_LOOK_UPS, _LOOK_UPS_EACH, _LOOK_UPS_WAITING = 4, 64, 256
"""Keys that are looked up in Postgres at a time; of one address, those that wait for their turn included; in all."""

_TRICKLE = 1.0
"""Seconds between two look-ups for an address that has used up its failures: its own right key still gets in."""

_BODIES = 256
"""Bodies of strangers that are waited for at a time, all addresses together, before each has SHORT seconds only."""

_BODY_TIME, _SHORT = 10.0, 3.0
"""Seconds for a stranger's whole body; for one that is beyond the number of bodies at a time."""


_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class AdmissionControl:
    """ASGI middleware in front of two gates: one for API calls, one for pages and what else needs no key."""

    def __init__(self, runtime: Runtime, app: Litestar, api: LoadShedder, pages: LoadShedder) -> None:
        http = runtime.config.http
        self._runtime = runtime
        self._api, self._pages = api, pages
        self._routes = RouteTable(app)
        self._documents = Documents(app)
        self._vouchers = runtime.contributed(KnownCallerCheck)
        self._pace = Throttle(
            http.anonymous_per_second,
            max(2, http.connections * 3 // 4),
            chance=lambda: int.from_bytes(runtime.ids.token(2), "big") / 65_536,
        )
        self._look_ups = WorkLimit(_LOOK_UPS, each=_LOOK_UPS_EACH, queue=_LOOK_UPS_WAITING, wait=max(http.wait, 0.001))
        self._looking_up: dict[str | None, asyncio.Event] = {}
        self._trickle = _SlowLane()
        self._each = http.anonymous_max_concurrent
        self._bodies = _Bodies(http.anonymous_max_concurrent)
        self._at_pages: Counter[str] = Counter()
        self._max_body = http.max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        try:
            await self._admit(scope, receive, send)
        except ApiError as refusal:
            # What is still to come of a body would be taken for the next request.
            is_last = isinstance(refusal, RequestTimeout | PayloadTooLarge | _TooManyReads)
            is_last = is_last and scope.get("http_version", "1.1").startswith("1")
            await refuse(send, refusal, {"Connection": "close"} if is_last else None)

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        route = self._routes.find(scope["path"])
        traits = None if route is None else route.traits(scope["method"])
        key = _key_of(scope) if traits is None or traits.needs_key else None
        is_known = self._is_known(scope, traits, key)
        if not is_known and key in self._looking_up:
            # The same key is being looked up, as many calls of a merchant begin at once after a start.
            await self._looking_up[key].wait()
            is_known = self._is_known(scope, traits, key)
        scope[KNOWN] = is_known
        if route is not None:
            # Litestar writes the same, for requests that reach it.
            scope["path_template"] = route.template
        if not is_known:
            await self._slow_down(scope, traits, key)
        if scope["path"].rstrip("/") in PATHS and scope["method"] in {"GET", "HEAD"}:
            await self._documents.answer(scope, send)
            return
        if route is None:
            raise NotFound(NOTHING_HERE)
        if traits is None:
            await _answer_method(scope, route, send)
            return
        if scope["method"] == "HEAD" and "HEAD" not in route.methods:
            scope["method"] = "GET"
            receive, send = _without_body(receive, send)
        if traits.needs_key:
            if not is_known:
                await self._authenticate(scope, key)
            scope[CALLER] = id_of(key)
            await self._api(scope, receive, send)
            return
        if not is_known and _has_body(scope):
            receive = await self._read_ahead(scope, traits, receive)
        if traits.has_priority:
            await self._api(scope, receive, send)
        else:
            async with self._place_at_pages(neighbourhood(scope[CLIENT])):
                await self._pages(scope, receive, send)

    # -- who is known ---------------------------------------------------------------------------------------------

    def _is_known(self, scope: Message, traits: RouteTraits | None, key: str | None) -> bool:
        if traits is None or traits.needs_key:
            return key is not None and self._runtime.api_keys.was_valid(key)
        path: str = scope["path"]
        return any(
            voucher.vouches(self._runtime, scope, scope[CLIENT])
            for voucher in self._vouchers
            if path.startswith(voucher.below)
        )

    async def _slow_down(self, scope: Message, traits: RouteTraits | None, key: str | None) -> None:
        """Wait as long as the address has to. Raises ServiceUnavailable in a crowd, except for what has priority."""
        is_probe = traits is not None and traits.is_probe
        has_priority = traits is not None and traits.has_priority
        if scope.get(CROWDED) and not has_priority:
            raise _TooManyReads(BUSY, retry_after=RETRY_AFTER)
        began = time.monotonic()
        admitted = await self._pace.admit(
            neighbourhood(scope[CLIENT]),
            longest=_PROBE_DELAY if is_probe else LONGEST,
            # After a start no key is known: merchants share no rate.
            together=key is None or not is_well_formed(key),
        )
        scope[SLOWED] = not admitted or time.monotonic() - began > _NOTICEABLE
        if not admitted and not is_probe:
            raise _TooManyReads("too many requests from this address at once: send fewer", retry_after=RETRY_AFTER)

    # -- keys -----------------------------------------------------------------------------------------------------

    async def _authenticate(self, scope: Message, key: str | None) -> None:
        """Look a key up that was not right before. Raises InvalidKey, TooManyFailures or ServiceUnavailable."""
        asked = {"method": scope["method"], "route": scope["path_template"]}
        if key is None:
            # No guess: a page of another site can make a browser ask without a key, never with one.
            await self._runtime.audit.observe("auth.failed", merchant_id=None, actor="unknown", detail=asked)
            raise InvalidKey(HEADER_HINT)
        who = neighbourhood(scope[CLIENT])
        wait = self._runtime.limits.refusal(AUTH, who)
        if wait and not (is_well_formed(key) and self._trickle.admits(who)):
            await self._runtime.audit.observe("auth.limited", merchant_id=None, actor="unknown", detail=asked)
            raise TooManyFailures(
                "too many failed authentications from this address: check the API key and wait", retry_after=wait
            )
        try:
            async with self._look_ups.acquire(who), self._looked_up(key):
                await self._runtime.api_keys.authenticate(key)
        except InvalidKey:
            await count_failure(self._runtime, scope[CLIENT], asked)
            raise
        except (*UNREACHABLE, *OVERBURDENED):
            raise ServiceUnavailable(DATABASE_AWAY, retry_after=5) from None

    @asynccontextmanager
    async def _looked_up(self, key: str) -> AsyncGenerator[None]:
        """A block that looks a key up, for which others with the same key wait."""
        done = self._looking_up.setdefault(key, asyncio.Event())
        try:
            yield
        finally:
            done.set()
            self._looking_up.pop(key, None)

    # -- bodies and pages -----------------------------------------------------------------------------------------

    async def _read_ahead(self, scope: Message, traits: RouteTraits, receive: Receive) -> Receive:
        # A route with priority judges a body that is too large itself: it is handed what was read, and the rest.
        most = min(self._max_body, traits.body_bytes or self._max_body)
        if _length(scope) > most:
            if traits.has_priority:
                return receive
            raise _too_large(most)
        messages, size = await self._bodies.read(neighbourhood(scope[CLIENT]), receive, most)
        if size > most and not traits.has_priority:
            raise _too_large(most)

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        return replay

    @asynccontextmanager
    async def _place_at_pages(self, who: str) -> AsyncGenerator[None]:
        if self._at_pages[who] >= self._each:
            raise ServiceUnavailable(BUSY, retry_after=RETRY_AFTER)
        self._at_pages[who] += 1
        try:
            yield
        finally:
            self._at_pages[who] -= 1
            if not self._at_pages[who]:
                del self._at_pages[who]


class _TooManyReads(ServiceUnavailable):
    """Refused, and the connection is closed: others need it."""


class _Bodies:
    """Reads bodies of strangers, a few of each address with patience, more of them in a hurry."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._awaited: Counter[str] = Counter()

    async def read(self, who: str, receive: Receive, most: int) -> tuple[list[Message], int]:
        """Return a body's messages and its size, no more than the first message beyond ``most`` bytes."""
        is_patient = self._awaited[who] < self._each and self._awaited.total() < _BODIES
        seconds = _BODY_TIME if is_patient else _SHORT
        messages: list[Message] = []
        size = 0
        self._awaited[who] += 1
        try:
            async with asyncio.timeout(seconds):
                while size <= most:
                    message = await receive()
                    messages.append(message)
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise RequestTimeout(f"the body did not come within {seconds:g} seconds: send the request again") from None
        finally:
            self._awaited[who] -= 1
            if not self._awaited[who]:
                del self._awaited[who]
        return messages, size


class _SlowLane:
    """One look-up in a while for each address that is limited."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._next: dict[str, float] = {}

    def admits(self, who: str) -> bool:
        now = self._now()
        if self._next.get(who, 0.0) > now:
            return False
        if len(self._next) >= _TRICKLE_MOST:
            self._next.clear()
        self._next[who] = now + _TRICKLE
        return True


_TRICKLE_MOST = 10_000


async def _answer_method(scope: Message, route: KnownRoute, send: Send) -> None:
    """Answer OPTIONS with the methods of the path, and raise MethodNotAllowed for what is none of them."""
    if scope["method"] != "OPTIONS":
        await refuse(send, MethodNotAllowed(NOT_ALLOWED), {"Allow": route.allow})
        return
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", route.allow.encode())]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _without_body(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """For HEAD: the head of the answer to GET. A stream ends with its first part."""
    has_ended = False

    async def send_head(message: Message) -> None:
        nonlocal has_ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not has_ended:
            has_ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive_until_then() -> Message:
        return {"type": "http.disconnect"} if has_ended else await receive()

    return receive_until_then, send_head


def _key_of(scope: Message) -> str | None:
    found = next((value for name, value in scope["headers"] if name == b"x-api-key"), None)
    return None if found is None else found.decode("latin-1")


def _has_body(scope: Message) -> bool:
    """Whether a body comes that the route reads: of GET none is."""
    if scope["method"] not in _WITH_BODY:
        return False
    return _length(scope) > 0 or any(name == b"transfer-encoding" for name, _ in scope["headers"])


def _length(scope: Message) -> int:
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(text) if text.isdigit() else 0


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is too large: at most {most} bytes are taken here")
