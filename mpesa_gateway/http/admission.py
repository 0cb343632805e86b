"""Admission of requests before they take a slot."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from litestar import Litestar

from mpesa_gateway.asgi_types import Message, Receive, Send
from mpesa_gateway.client_ip import CLIENT, client_network
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE
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
from mpesa_gateway.security.api_keys import HEADER_HINT, id_of, is_well_formed, presented_key
from mpesa_gateway.security.rate_limits import AUTH

_PROBE_DELAY = 0.5
"""Seconds: probes time out after one."""

_SLOWED_AFTER = 0.01
"""Seconds of delay from which a request counts as slowed."""

_LOOKUPS, _LOOKUPS_EACH, _LOOKUPS_WAITING = 4, 64, 256
"""Key lookups: concurrent, per address (with waiting ones), and waiting in total."""

_TRICKLE = 1.0
"""Seconds between lookups for an address over the failure limit: its valid key still works."""

_BODIES = 256
"""Unknown bodies read at a time before the timeout drops to ``_SHORT``."""

_BODY_TIME, _SHORT = 10.0, 3.0
"""Seconds for an unknown body: normal, and above the limit."""


_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class AdmissionControl:
    """ASGI middleware in front of two load shedders: API calls, and keyless requests.

    A request is *known* if its API key was valid before or a plugin vouches for it. Others are limited (ADR 48).
    """

    def __init__(self, runtime: Runtime, app: Litestar, api: LoadShedder, pages: LoadShedder) -> None:
        http = runtime.config.http
        self._runtime = runtime
        self._api, self._pages = api, pages
        self._routes = RouteTable(app)
        self._documents = Documents(app)
        self._caller_checks = runtime.contributed(KnownCallerCheck)
        self._pace = Throttle(
            http.anonymous_per_second,
            max(2, http.connections * 3 // 4),
            chance=lambda: int.from_bytes(runtime.ids.token(2), "big") / 65_536,
        )
        self._lookups = WorkLimit(_LOOKUPS, each=_LOOKUPS_EACH, queue=_LOOKUPS_WAITING, wait=max(http.wait, 0.001))
        self._looking_up: dict[str | None, asyncio.Event] = {}
        self._trickle = _RetryLimit()
        self._each = http.anonymous_max_concurrent
        self._bodies = _Bodies(http.anonymous_max_concurrent)
        self._page_calls: Counter[str] = Counter()
        self._max_body = http.max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        try:
            await self._admit(scope, receive, send)
        except ApiError as refusal:
            # Unread bytes would be parsed as the next request.
            is_last = isinstance(refusal, RequestTimeout | PayloadTooLarge | _Overloaded)
            is_last = is_last and scope.get("http_version", "1.1").startswith("1")
            await refuse(send, refusal, {"Connection": "close"} if is_last else None)

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        route = self._routes.find(scope["path"])
        traits = None if route is None else route.traits(scope["method"])
        key = presented_key(scope["headers"]) if traits is None or traits.needs_key else None
        is_known = self._is_known(scope, traits, key)
        if not is_known and key in self._looking_up:
            # Concurrent first calls with a key share one lookup.
            await self._looking_up[key].wait()
            is_known = self._is_known(scope, traits, key)
        scope[KNOWN] = is_known
        if route is not None:
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
            async with self._place_at_pages(client_network(scope[CLIENT])):
                await self._pages(scope, receive, send)

    def _is_known(self, scope: Message, traits: RouteTraits | None, key: str | None) -> bool:
        if traits is None or traits.needs_key:
            return key is not None and self._runtime.api_keys.was_valid(key)
        path: str = scope["path"]
        return any(
            voucher.vouches(self._runtime, scope, scope[CLIENT])
            for voucher in self._caller_checks
            if path.startswith(voucher.below)
        )

    async def _slow_down(self, scope: Message, traits: RouteTraits | None, key: str | None) -> None:
        """Wait for the address's turn. Raises ServiceUnavailable if overloaded, except for priority routes."""
        is_probe = traits is not None and traits.is_probe
        has_priority = traits is not None and traits.has_priority
        if scope.get(CROWDED) and not has_priority:
            raise _Overloaded(BUSY, retry_after=RETRY_AFTER)
        began = time.monotonic()
        admitted = await self._pace.admit(
            client_network(scope[CLIENT]),
            longest=_PROBE_DELAY if is_probe else LONGEST,
            # No key is known after a start: merchants must not share a rate.
            together=key is None or not is_well_formed(key),
        )
        scope[SLOWED] = not admitted or time.monotonic() - began > _SLOWED_AFTER
        if not admitted and not is_probe:
            raise _Overloaded("too many requests from this address at once: send fewer", retry_after=RETRY_AFTER)

    async def _authenticate(self, scope: Message, key: str | None) -> None:
        request_info = {"method": scope["method"], "route": scope["path_template"]}
        if key is None:
            # Not a guess: any website can make a browser send requests without a key.
            await self._runtime.audit.observe("auth.failed", merchant_id=None, actor="unknown", detail=request_info)
            raise InvalidKey(HEADER_HINT)
        client = client_network(scope[CLIENT])
        wait = self._runtime.limits.blocked_seconds(AUTH, client)
        if wait and not (is_well_formed(key) and self._trickle.admits(client)):
            await self._runtime.audit.observe("auth.limited", merchant_id=None, actor="unknown", detail=request_info)
            raise TooManyFailures(
                "too many failed authentications from this address: check the API key and wait", retry_after=wait
            )
        try:
            async with self._lookups.acquire(client), self._share_lookup(key):
                await self._runtime.api_keys.authenticate(key)
        except InvalidKey:
            await count_failure(self._runtime, scope[CLIENT], request_info)
            raise
        except (*UNREACHABLE, *OVERLOADED):
            raise ServiceUnavailable(DATABASE_AWAY, retry_after=5) from None

    @asynccontextmanager
    async def _share_lookup(self, key: str) -> AsyncGenerator[None]:
        done = self._looking_up.setdefault(key, asyncio.Event())
        try:
            yield
        finally:
            done.set()
            self._looking_up.pop(key, None)

    async def _read_ahead(self, scope: Message, traits: RouteTraits, receive: Receive) -> Receive:
        # A priority route judges oversized bodies itself.
        most = min(self._max_body, traits.body_bytes or self._max_body)
        if _length(scope) > most:
            if traits.has_priority:
                return receive
            raise _payload_too_large(most)
        messages, size = await self._bodies.read(client_network(scope[CLIENT]), receive, most)
        if size > most and not traits.has_priority:
            raise _payload_too_large(most)

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        return replay

    @asynccontextmanager
    async def _place_at_pages(self, client: str) -> AsyncGenerator[None]:
        if self._page_calls[client] >= self._each:
            raise ServiceUnavailable(BUSY, retry_after=RETRY_AFTER)
        self._page_calls[client] += 1
        try:
            yield
        finally:
            self._page_calls[client] -= 1
            if not self._page_calls[client]:
                del self._page_calls[client]


class _Overloaded(ServiceUnavailable):
    """The server is overloaded, and the connection is closed."""


class _Bodies:
    def __init__(self, each: int) -> None:
        self._each = each
        self._awaited: Counter[str] = Counter()

    async def read(self, client: str, receive: Receive, most: int) -> tuple[list[Message], int]:
        """Return messages and size, up to the first message beyond ``most`` bytes."""
        is_patient = self._awaited[client] < self._each and self._awaited.total() < _BODIES
        seconds = _BODY_TIME if is_patient else _SHORT
        messages: list[Message] = []
        size = 0
        self._awaited[client] += 1
        try:
            async with asyncio.timeout(seconds):
                while size <= most:
                    message = await receive()
                    messages.append(message)
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise RequestTimeout(
                f"the body did not arrive within {seconds:g} seconds: send the request again"
            ) from None
        finally:
            self._awaited[client] -= 1
            if not self._awaited[client]:
                del self._awaited[client]
        return messages, size


class _RetryLimit:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._next: dict[str, float] = {}

    def admits(self, client: str) -> bool:
        now = self._now()
        if self._next.get(client, 0.0) > now:
            return False
        if len(self._next) >= _MOST_ADDRESSES:
            self._next.clear()
        self._next[client] = now + _TRICKLE
        return True


_MOST_ADDRESSES = 10_000


async def _answer_method(scope: Message, route: KnownRoute, send: Send) -> None:
    if scope["method"] != "OPTIONS":
        await refuse(send, MethodNotAllowed(NOT_ALLOWED), {"Allow": route.allow})
        return
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", route.allow.encode())]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _without_body(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Answer HEAD like GET without the body; a stream ends at its first part."""
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


def _has_body(scope: Message) -> bool:
    if scope["method"] not in _WITH_BODY:
        return False
    return _length(scope) > 0 or any(name == b"transfer-encoding" for name, _ in scope["headers"])


def _length(scope: Message) -> int:
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(text) if text.isdigit() else 0


def _payload_too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is too large: at most {most} bytes are accepted")
