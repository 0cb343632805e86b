"""The gate: so many calls at a time, a few that wait, an honest no to the rest, and callbacks past them all."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar import get, post
from litestar.routes import HTTPRoute

from mpesa_gateway import call_slots as places
from mpesa_gateway.app import Gateway
from mpesa_gateway.asgi_types import Message, Receive, Send
from mpesa_gateway.call_slots import released_slot
from mpesa_gateway.config import ConfigError, GatewayConfig, HttpConfig
from mpesa_gateway.db.engine import reserve
from mpesa_gateway.http.load_shedding import CALLER, CROWDED, LoadShedder, PriorityError
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.testing.serving import eventually, running_gateway, shop
from mpesa_gateway_payments.scopes import PaymentsRead
from mpesa_gateway_payments.service import PaymentService
from tests.asgi import ask

PATIENT = 3600.0
"""Seconds that a call may wait where a test is not about that."""


@dataclass
class Desk:
    """An application whose calls go on when the test says so."""

    begun: list[str] = field(default_factory=list[str])
    steps: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    work: Callable[[str, Receive, Send], Awaitable[None]] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        path = scope["path"]
        self.begun.append(path)
        if self.work is not None:
            await self.work(path, receive, send)
        await self.step(path).wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def step(self, path: str) -> asyncio.Event:
        """What a call waits for."""
        return self.steps.setdefault(path, asyncio.Event())


class Visit:
    """One request at the gate, and what it was answered."""

    def __init__(self, gate: LoadShedder, path: str, **scope: Any) -> None:
        self.head: Message | None = None
        self.body = b""
        self.sent = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        none: list[tuple[bytes, bytes]] = []
        given: Message = {"type": "http", "path": path, "http_version": "1.1", "headers": none} | scope
        self.task = asyncio.create_task(gate(given, self._receive, self._send))

    async def _receive(self) -> Message:
        await self.sent.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Message) -> None:
        await self.may_send.wait()
        if message["type"] == "http.response.start":
            self.head = message
        else:
            self.body += message["body"]

    async def status(self) -> int:
        """What it was answered, once it was."""
        await self.task
        assert self.head is not None
        status: int = self.head["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the answer."""
        assert self.head is not None
        return dict(self.head["headers"])


class Street:
    """A gate, the desk behind it, and everybody who comes."""

    def __init__(self, **config: Any) -> None:
        self.desk = Desk()
        self.is_draining = False
        self.gate = LoadShedder(
            self.desk,
            msgspec.structs.replace(HttpConfig(wait=PATIENT), **config),
            priority=lambda path: path.startswith("/callback"),
            is_draining=lambda: self.is_draining,
        )

    def come(self, *paths: str, who: str = "") -> list[Visit]:
        """Requests, one after the other; ``who`` is the key that they all show."""
        return [Visit(self.gate, path, **{CALLER: who}) for path in paths]

    async def settled(self) -> tuple[int, int, int]:
        """Calls in work, begun and unanswered, and waiting, once nothing moves any more."""
        for _ in range(50):
            await asyncio.sleep(0)
        return self.gate.working, self.gate.unanswered, self.gate.waiting

    async def finish(self, *paths: str) -> None:
        """Let these calls be answered."""
        for path in paths:
            self.desk.step(path).set()
        await self.settled()


async def test_so_many_are_worked_on_the_next_wait_in_order_and_the_rest_is_turned_away() -> None:
    street = Street(max_concurrent=2, queue=2)
    first, second, third, fourth, fifth = street.come("/1", "/2", "/3", "/4", "/5")
    assert await street.settled() == (2, 2, 2)
    assert street.desk.begun == ["/1", "/2"]
    assert await fifth.status() == 503
    await street.finish("/2")
    assert street.desk.begun == ["/1", "/2", "/3"]
    await street.finish("/3")
    assert street.desk.begun == ["/1", "/2", "/3", "/4"]
    await street.finish("/1", "/4")
    assert [await visit.status() for visit in (first, second, third, fourth)] == [200] * 4
    assert await street.settled() == (0, 0, 0)
    assert street.gate.turned_away == 1


async def test_who_is_turned_away_is_told_so_in_the_envelope_and_when_to_come_back() -> None:
    street = Street(max_concurrent=1, queue=0)
    _, turned_away = street.come("/1", "/2")
    assert await turned_away.status() == 503
    assert turned_away.headers[b"retry-after"] == b"1"
    assert turned_away.headers[b"content-type"] == b"application/json"
    (problem,) = msgspec.json.decode(turned_away.body)["errors"]
    assert (problem["code"], problem["retryable"]) == ("SERVICE_UNAVAILABLE", True)
    assert "nothing was done" in problem["message"]
    await street.finish("/1")


async def test_who_has_waited_too_long_is_turned_away() -> None:
    street = Street(max_concurrent=1, queue=5, wait=0.01)
    _, late = street.come("/1", "/2")
    assert await late.status() == 503
    assert await street.settled() == (1, 1, 0)
    assert street.desk.begun == ["/1"]
    await street.finish("/1")
    (after,) = street.come("/3")
    await street.finish("/3")
    assert await after.status() == 200


async def test_priority_waits_for_nobody_and_takes_no_place() -> None:
    street = Street(max_concurrent=1, queue=0)
    street.come("/1")
    called_back = street.come(*(f"/callback/{number}" for number in range(20)))
    assert await street.settled() == (1, 1, 0)
    await street.finish(*(f"/callback/{number}" for number in range(20)))
    assert [await visit.status() for visit in called_back] == [200] * 20
    await street.finish("/1")


async def test_a_call_that_waits_for_somebody_else_leaves_its_place_to_another_and_goes_on_without_waiting() -> None:
    street = Street(max_concurrent=1, queue=5)
    mpesa = asyncio.Event()

    async def work(path: str, _: Receive, __: Send) -> None:
        if path == "/asks":
            with released_slot():
                await mpesa.wait()

    street.desk.work = work
    asks, other = street.come("/asks", "/other")
    assert await street.settled() == (1, 2, 0)
    assert street.desk.begun == ["/asks", "/other"]
    (third,) = street.come("/third")
    assert await street.settled() == (1, 2, 1)
    mpesa.set()
    # Back at its work beside the other one, and before the third.
    assert await street.settled() == (2, 2, 1)
    await street.finish("/asks")
    assert await asks.status() == 200
    assert await street.settled() == (1, 1, 1)
    await street.finish("/other", "/third")
    assert [await visit.status() for visit in (other, third)] == [200, 200]
    assert await street.settled() == (0, 0, 0)


def waited_for(street: Street) -> asyncio.Event:
    """What every call of the street waits for from now on, aside."""
    event = asyncio.Event()

    async def work(_: str, __: Receive, ___: Send) -> None:
        with released_slot():
            await event.wait()

    street.desk.work = work
    return event


async def test_calls_that_wait_for_others_are_bounded_too() -> None:
    street = Street(max_concurrent=1, max_unanswered=3, queue=1)
    mpesa = waited_for(street)
    *begun, waits, turned_away = street.come("/1", "/2", "/3", "/4", "/5")
    assert await street.settled() == (0, 3, 1)
    assert await turned_away.status() == 503
    mpesa.set()
    await street.finish("/1", "/2", "/3", "/4")
    assert [await visit.status() for visit in (*begun, waits)] == [200] * 4
    assert await street.settled() == (0, 0, 0)


async def test_one_key_begins_half_of_the_calls_at_most_whatever_they_wait_for() -> None:
    street = Street(max_concurrent=2, max_unanswered=6, queue=4)
    others = waited_for(street)
    greedy = street.come("/1", "/2", "/3", "/4", "/5", who="greedy")
    assert await street.settled() == (0, 3, 2)
    # The greedy calls that wait keep nobody out, though room is left for none of them.
    modest = street.come("/a", "/b", who="modest")
    assert await street.settled() == (0, 5, 2)
    assert street.desk.begun == ["/1", "/2", "/3", "/a", "/b"]
    others.set()
    await street.finish("/1", "/2", "/3", "/4", "/5", "/a", "/b")
    assert [await visit.status() for visit in (*greedy, *modest)] == [200] * 7
    assert await street.settled() == (0, 0, 0)
    # Nothing is left of the shares.
    again = street.come("/1", "/2", "/3", who="greedy")
    assert [await visit.status() for visit in again] == [200] * 3


async def test_a_full_queue_makes_room_for_who_waits_with_less_and_the_next_turn_is_theirs() -> None:
    street = Street(max_concurrent=2, queue=4)
    greedy = street.come("/1", "/2", "/3", "/4", "/5", "/6", "/7", who="greedy")
    assert await greedy[6].status() == 503
    assert await street.settled() == (2, 2, 4)
    (modest,) = street.come("/a", who="modest")
    # The last of the crowd is turned away, as it would have been with one more in front.
    assert await greedy[5].status() == 503
    assert await street.settled() == (2, 2, 4)
    await street.finish("/1")
    assert street.desk.begun == ["/1", "/2", "/a"]
    # Whoever has no key to tell them by displaces nobody.
    (nobody,) = street.come("/n")
    await street.settled()
    await street.finish("/2", "/3", "/4", "/5", "/a", "/n")
    assert [await visit.status() for visit in (*greedy[:5], modest, nobody)] == [200] * 7
    assert await street.settled() == (0, 0, 0)


async def test_who_hangs_up_gives_its_share_back_whenever_that_is() -> None:
    street = Street(max_concurrent=1, max_unanswered=2, queue=4)
    for _ in range(3):
        begun, waits = street.come("/1", "/2", who="one")
        await street.settled()
        waits.task.cancel()
        begun.task.cancel()
        assert await street.settled() == (0, 0, 0)
    (last,) = street.come("/3", who="one")
    await street.finish("/3")
    assert await last.status() == 200


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=24),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(0, 6),
)
async def test_shares_hold_whoever_comes_and_goes(
    steps: list[tuple[str, bool]], at_once: int, unanswered: int, queue: int
) -> None:
    street = Street(max_concurrent=at_once, max_unanswered=unanswered, queue=queue)
    visits: list[tuple[str, str, Visit]] = []
    for number, (who, comes) in enumerate(steps):
        if comes or not visits:
            path = f"/{number}"
            visits.append((who, path, street.come(path, who=who)[0]))
        else:
            street.desk.step(visits[number % len(visits)][1]).set()
        working, begun, waiting = await street.settled()
        assert working <= at_once
        assert begun <= unanswered
        assert waiting <= queue
        open_ones = [
            name for name, path, _ in visits if path in street.desk.begun and not street.desk.step(path).is_set()
        ]
        assert all(open_ones.count(name) <= max(1, unanswered // 2) for name in "abc")
    for _, path, _ in visits:
        street.desk.step(path).set()
    assert {await visit.status() for _, _, visit in visits} <= {200, 503}
    assert await street.settled() == (0, 0, 0)


async def test_several_tasks_of_one_call_leave_one_place() -> None:
    street = Street(max_concurrent=1, queue=5)
    gates = [asyncio.Event(), asyncio.Event()]

    async def wait(event: asyncio.Event) -> None:
        with released_slot():
            await event.wait()

    async def work(path: str, _: Receive, __: Send) -> None:
        if path == "/1":
            await asyncio.gather(*map(wait, gates))

    street.desk.work = work
    street.come("/1")
    assert await street.settled() == (0, 1, 0)
    gates[0].set()
    assert await street.settled() == (0, 1, 0)
    gates[1].set()
    assert await street.settled() == (1, 1, 0)
    await street.finish("/1")
    assert await street.settled() == (0, 0, 0)


async def test_what_a_call_leaves_running_counts_no_more() -> None:
    street = Street(max_concurrent=1, queue=5)
    mpesa = asyncio.Event()
    pushes: list[asyncio.Task[None]] = []

    async def push() -> None:
        with released_slot():
            await mpesa.wait()

    async def work(_: str, __: Receive, ___: Send) -> None:
        pushes.append(asyncio.create_task(push()))
        await asyncio.shield(pushes[0])

    street.desk.work = work
    (hangs_up,) = street.come("/1")
    assert await street.settled() == (0, 1, 0)
    hangs_up.task.cancel()
    assert await street.settled() == (0, 0, 0)
    mpesa.set()
    await pushes[0]
    assert await street.settled() == (0, 0, 0)


async def test_a_body_that_comes_slowly_and_an_answer_that_is_read_slowly_keep_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "_SLOW", 0.0)
    street = Street(max_concurrent=1, queue=5)

    async def work(_: str, receive: Receive, __: Send) -> None:
        await receive()

    street.desk.work = work
    (slow,) = street.come("/slow")
    await eventually(lambda: has(street, (0, 1, 0)))
    (other,) = street.come("/other")
    other.sent.set()
    await street.finish("/other")
    assert await other.status() == 200
    slow.may_send.clear()
    slow.sent.set()
    street.desk.step("/slow").set()
    await eventually(lambda: has(street, (0, 1, 0)))
    slow.may_send.set()
    assert await slow.status() == 200
    assert await street.settled() == (0, 0, 0)


async def has(street: Street, counts: tuple[int, int, int]) -> bool:
    return await street.settled() == counts


async def test_a_quick_body_invites_nobody_else() -> None:
    street = Street(max_concurrent=1, queue=5)

    async def work(_: str, receive: Receive, __: Send) -> None:
        await receive()

    street.desk.work = work
    visits = street.come("/1", "/2")
    for visit in visits:
        visit.sent.set()
    assert await street.settled() == (1, 1, 1)
    await street.finish("/1", "/2")


async def test_a_call_that_fails_gives_its_place_back() -> None:
    street = Street(max_concurrent=1, queue=5)

    async def work(path: str, _: Receive, __: Send) -> None:
        if path == "/1":
            raise RuntimeError("broken")

    street.desk.work = work
    broken, fine = street.come("/1", "/2")
    with pytest.raises(RuntimeError, match="broken"):
        await broken.task
    await street.finish("/2")
    assert await fine.status() == 200
    assert await street.settled() == (0, 0, 0)


async def test_who_hangs_up_while_waiting_leaves_no_trace_whenever_that_is() -> None:
    street = Street(max_concurrent=1, queue=5)
    _, waits, called, last = street.come("/1", "/2", "/3", "/4")
    assert await street.settled() == (1, 1, 3)
    waits.task.cancel()
    assert await street.settled() == (1, 1, 2)
    # Called in, and hanging up at the same moment: its place goes to the one behind it.
    street.desk.step("/1").set()
    for _ in range(50):
        if street.gate.waiting == 1:
            break
        await asyncio.sleep(0)
    called.task.cancel()
    assert await street.settled() == (1, 1, 0)
    assert street.desk.begun == ["/1", "/4"]
    await street.finish("/4")
    assert await last.status() == 200
    assert await street.settled() == (0, 0, 0)


async def test_a_process_that_is_about_to_stop_asks_for_no_more_on_the_same_connection() -> None:
    street = Street(max_concurrent=1, queue=0)
    street.is_draining = True
    here, called_back, turned_away = street.come("/1", "/callback", "/2")
    newer = Visit(street.gate, "/callback", http_version="2")
    assert await street.settled() == (1, 1, 0)
    await street.finish("/1", "/callback")
    for visit in (here, called_back, turned_away):
        await visit.status()
        assert visit.headers[b"connection"] == b"close"
    await newer.status()
    assert b"connection" not in newer.headers


# -- in front of the gateway --------------------------------------------------------------------------------------


class Counter:
    """A counter at which a customer is served until the test says that it is over."""

    def __init__(self) -> None:
        self.over, self.came = asyncio.Event(), asyncio.Event()

        @get("/v1/counter")
        async def counter(caller: PaymentsRead) -> None:  # noqa: ARG001 - what needs no key has places of its own
            self.came.set()
            await self.over.wait()

        self.plugin = Plugin(name="counter", summary="Keeps whoever comes.", routes=(counter,))


@asynccontextmanager
async def busy(values: dict[str, Any], **http: Any) -> AsyncGenerator[tuple[Gateway, str, Counter]]:
    """A gateway all of whose places are taken."""
    counter = Counter()
    changes = {"worker": {"in_process": False}, "http": {"max_concurrent": 1, "queue": 0} | http}
    async with (
        running_gateway(values | changes, plugins=(counter.plugin,)) as (gateway, base),
        shop(gateway, base, is_configured=False) as api,
    ):
        kept = asyncio.create_task(api.call("GET", "/v1/counter"))
        await counter.came.wait()
        try:
            yield gateway, base, counter
        finally:
            counter.over.set()
            await kept


async def test_a_busy_gateway_takes_callbacks_and_says_how_it_is_and_turns_api_calls_away(
    values: dict[str, Any],
) -> None:
    async with busy(values) as (gateway, base, counter), shop(gateway, base, is_configured=False) as api:
        refused = await api.pay("254711000001", 5, key="a")
        assert (refused.status, refused.error["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["X-Request-ID"] == refused.body["request_id"]
        assert (await api.call("GET", "/health/live")).status == 200
        assert (await api.call("GET", "/health/ready")).status == 200
        body = {"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 1032, "ResultDesc": "no"}}}
        # Not from Safaricom, and told so by the callbacks plugin itself: it was let in.
        assert (await api.call("POST", "/v1/webhooks/mpesa", body)).error["code"] == "CALLBACK_REFUSED"
        counter.over.set()
        await eventually(lambda: is_free(gateway))
        assert (await api.pay("254711000001", 5, key="a")).error["code"] == "PROVIDER_NOT_CONFIGURED"


async def is_free(gateway: Gateway) -> bool:
    return gateway.asgi.load_shedder.working == 0


async def test_while_mpesa_thinks_another_call_is_worked_on(values: dict[str, Any]) -> None:
    changes = {
        "worker": {"in_process": False},
        "http": {"max_concurrent": 1, "queue": 0},
        "simulator": {"slow_answer": 3},
    }
    async with running_gateway(values | changes) as (gateway, base), shop(gateway, base) as api:
        pushing = asyncio.create_task(api.pay("254700000017", 5, key="slow"))
        await eventually(lambda: gateway.db.fetchval("SELECT count(*) FROM sim_push"))
        assert (await api.call("GET", "/v1/merchant/me")).status == 200
        assert not pushing.done()
        assert (await pushing).status == 201


def test_every_callback_and_health_check_has_priority_and_nothing_of_the_api_has(values: dict[str, Any]) -> None:
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    del values["simulator"]
    app = Gateway(GatewayConfig.from_values(values)).asgi.litestar
    with_priority = {
        route.path
        for route in app.routes
        if isinstance(route, HTTPRoute) and any(handler.opt.get("priority") for handler in route.route_handlers)
    }
    assert {
        path for path in with_priority if not path.startswith(("/health/", "/v1/cb/", "/v1/webhooks/mpesa"))
    } == set()
    assert len(with_priority) == 7


@pytest.mark.parametrize("path", ["/v1/cb/mine", "/v1/cb/stk/{mine:str}/more", "/health/live"])
def test_an_ordinary_route_below_one_with_priority_is_refused(values: dict[str, Any], path: str) -> None:
    @post(path, public=True)
    async def mine() -> None: ...

    plugin = Plugin(name="mine", summary="Stands in the way.", routes=(mine,))
    with pytest.raises(PriorityError, match="give routes with priority addresses of their own"):
        _ = Gateway(GatewayConfig.from_values(values), plugins=(plugin,)).asgi.litestar


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"http": {"max_concurrent": 0}}, "`http.max_concurrent`: .*>= 1"),
        ({"http": {"max_unanswered": 0}}, "`http.max_unanswered`: .*>= 1"),
        ({"http": {"connections": 0}}, "`http.connections`: .*>= 1"),
        ({"http": {"queue": -1}}, "`http.queue`: .*>= 0"),
        ({"http": {"wait": -1}}, "`http.wait`: .*>= 0"),
        ({"database": {"reserve": -1}}, "`database.reserve`: .*>= 0"),
    ],
)
def test_settings_that_would_let_nobody_in_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        GatewayConfig.from_values(changes)


# -- connections --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def hold(gateway: Gateway, count: int) -> AsyncGenerator[None]:
    """So many connections to Postgres, all in use."""
    over, held = asyncio.Event(), [asyncio.Event() for _ in range(count)]

    async def one(event: asyncio.Event) -> None:
        async with gateway.db.connection():
            event.set()
            await over.wait()

    tasks = [asyncio.create_task(one(event)) for event in held]
    await asyncio.gather(*(event.wait() for event in held))
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def test_some_connections_to_postgres_are_left_to_callbacks(values: dict[str, Any]) -> None:
    changes = {"worker": {"in_process": False}, "database": values["database"] | {"pool_max": 5, "reserve": 2}}
    async with running_gateway(values | changes) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000007", 5, key="silent")).data
        body = {
            "Body": {"stkCallback": {"CheckoutRequestID": made["provider_ref"], "ResultCode": 0, "ResultDesc": "ok"}}
        }
        address = await gateway.db.fetchval("SELECT callback_url FROM sim_push")
        async with hold(gateway, 3):
            waits = asyncio.create_task(api.call("GET", "/v1/merchant/me"))
            ordinary = asyncio.create_task(gateway.db.fetchval("SELECT 1"))
            by_piccolo = asyncio.create_task(gateway.merchants.get("mer_none"))
            with reserve():
                assert await gateway.db.fetchval("SELECT 2") == 2
            assert (await api.call("POST", address.removeprefix(base), body)).status == 200
            assert (await api.call("GET", "/health/ready")).status == 200
            assert not waits.done()
            assert not ordinary.done()
            assert not by_piccolo.done()
        assert (await waits).status == 200
        assert await ordinary == 1
        assert await by_piccolo is None


async def test_creates_leave_the_reserve_to_callbacks(values: dict[str, Any]) -> None:
    """A push is not marked from the reserve, and of the outcomes of pushes one at a time is written from it."""
    changes = {"worker": {"in_process": False}, "database": values["database"] | {"pool_max": 5, "reserve": 2}}
    over, writing = asyncio.Event(), 0

    async def write() -> bool:
        nonlocal writing
        writing += 1
        await over.wait()
        return True

    async with running_gateway(values | changes) as (gateway, _):
        async with hold(gateway, 3):
            steps = cast(Any, gateway.services.get(PaymentService))._steps
            marks = asyncio.create_task(steps.mark_sending("pay_none", 1))
            outcomes = [asyncio.create_task(gateway.outcomes.record("ack", "pay_none", write)) for _ in range(3)]
            await asyncio.wait([marks, *outcomes], timeout=0.3)
            assert writing == 1
            with reserve():
                assert await gateway.db.fetchval("SELECT 2") == 2
            assert not marks.done()
            over.set()
            await asyncio.wait(outcomes, timeout=0.3, return_when=asyncio.FIRST_COMPLETED)
            assert [outcome.done() for outcome in outcomes] == [True, False, False]
        assert await asyncio.gather(*outcomes) == [True, True, True]
        assert await marks is False


@pytest.mark.parametrize(("pool_max", "ordinary"), [(1, 1), (2, 1), (5, 3), (8, 4), (20, 16)])
async def test_a_small_pool_is_not_all_reserve(values: dict[str, Any], pool_max: int, ordinary: int) -> None:
    values |= {"worker": {"in_process": False}, "database": values["database"] | {"pool_max": pool_max}}
    gateway = Gateway(GatewayConfig.from_values(values))
    await gateway.db.start()
    try:
        async with hold(gateway, ordinary):
            waits = asyncio.create_task(gateway.db.fetchval("SELECT 1"))
            done, _ = await asyncio.wait([waits], timeout=0.2)
            assert not done
        assert await waits == 1
    finally:
        await gateway.db.stop()


async def test_where_connections_are_too_many_calls_are_refused_and_callbacks_are_not(values: dict[str, Any]) -> None:
    config = GatewayConfig.from_values(values | {"worker": {"in_process": False}})
    async with Gateway(config).running() as gateway:

        async def crowded(scope: Message, receive: Receive, send: Send) -> None:
            await gateway.asgi({**scope, CROWDED: True}, receive, send)

        refused = await ask(crowded, "GET", b"/v1/merchant/me")
        assert (refused.status, refused.codes) == (503, ["SERVICE_UNAVAILABLE"])
        assert (refused.header(b"retry-after"), refused.header(b"connection")) == (b"1", b"close")
        assert refused.header(b"x-request-id").decode() == refused.json["request_id"]
        assert (await ask(crowded, "GET", b"/health/live")).status == 200
        assert (await ask(gateway.asgi, "GET", b"/v1/merchant/me")).status == 401
