"""Protects load shedding: a bound of concurrent calls, a queue, a 503 for the rest, and priority for callbacks."""

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
from tests.asgi import send_request

PATIENT = 3600.0
"""Seconds that a call may wait in tests of other bounds."""


@dataclass
class SteppedApp:
    """An application whose calls continue once the test sets their step."""

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
        """Return the event that a call waits for."""
        return self.steps.setdefault(path, asyncio.Event())


class Call:
    """One request to the gate, and its answer."""

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
        """Return the status of the answer, once it is complete."""
        await self.task
        assert self.head is not None
        status: int = self.head["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the answer."""
        assert self.head is not None
        return dict(self.head["headers"])


class Site:
    """A gate, the application behind it, and its calls."""

    def __init__(self, **config: Any) -> None:
        self.app = SteppedApp()
        self.is_draining = False
        self.gate = LoadShedder(
            self.app,
            msgspec.structs.replace(HttpConfig(wait=PATIENT), **config),
            priority=lambda path: path.startswith("/callback"),
            is_draining=lambda: self.is_draining,
        )

    def call(self, *paths: str, who: str = "") -> list[Call]:
        """Start requests, one after the other, with the key ``who``."""
        return [Call(self.gate, path, **{CALLER: who}) for path in paths]

    async def settled(self) -> tuple[int, int, int]:
        """Return the calls in progress, started and unanswered, and waiting, once nothing changes."""
        for _ in range(50):
            await asyncio.sleep(0)
        return self.gate.working, self.gate.unanswered, self.gate.waiting

    async def finish(self, *paths: str) -> None:
        """Let these calls be answered."""
        for path in paths:
            self.app.step(path).set()
        await self.settled()


async def test_gate_runs_a_bounded_number_queues_some_and_refuses_the_rest() -> None:
    site = Site(max_concurrent=2, queue=2)
    first, second, third, fourth, fifth = site.call("/1", "/2", "/3", "/4", "/5")
    assert await site.settled() == (2, 2, 2)
    assert site.app.begun == ["/1", "/2"]
    assert await fifth.status() == 503
    await site.finish("/2")
    assert site.app.begun == ["/1", "/2", "/3"]
    await site.finish("/3")
    assert site.app.begun == ["/1", "/2", "/3", "/4"]
    await site.finish("/1", "/4")
    assert [await call.status() for call in (first, second, third, fourth)] == [200] * 4
    assert await site.settled() == (0, 0, 0)
    assert site.gate.rejected == 1


async def test_gate_refusal_is_in_the_envelope_with_retry_after() -> None:
    site = Site(max_concurrent=1, queue=0)
    _, turned_away = site.call("/1", "/2")
    assert await turned_away.status() == 503
    assert turned_away.headers[b"retry-after"] == b"1"
    assert turned_away.headers[b"content-type"] == b"application/json"
    (problem,) = msgspec.json.decode(turned_away.body)["errors"]
    assert (problem["code"], problem["retryable"]) == ("SERVICE_UNAVAILABLE", True)
    assert "nothing was done" in problem["message"]
    await site.finish("/1")


async def test_gate_call_that_waited_too_long_is_refused() -> None:
    site = Site(max_concurrent=1, queue=5, wait=0.01)
    _, late = site.call("/1", "/2")
    assert await late.status() == 503
    assert await site.settled() == (1, 1, 0)
    assert site.app.begun == ["/1"]
    await site.finish("/1")
    (after,) = site.call("/3")
    await site.finish("/3")
    assert await after.status() == 200


async def test_gate_priority_call_does_not_wait_and_takes_no_slot() -> None:
    site = Site(max_concurrent=1, queue=0)
    site.call("/1")
    called_back = site.call(*(f"/callback/{number}" for number in range(20)))
    assert await site.settled() == (1, 1, 0)
    await site.finish(*(f"/callback/{number}" for number in range(20)))
    assert [await call.status() for call in called_back] == [200] * 20
    await site.finish("/1")


async def test_gate_call_waiting_aside_frees_its_slot_and_resumes_without_waiting() -> None:
    site = Site(max_concurrent=1, queue=5)
    mpesa = asyncio.Event()

    async def work(path: str, _: Receive, __: Send) -> None:
        if path == "/asks":
            with released_slot():
                await mpesa.wait()

    site.app.work = work
    asks, other = site.call("/asks", "/other")
    assert await site.settled() == (1, 2, 0)
    assert site.app.begun == ["/asks", "/other"]
    (third,) = site.call("/third")
    assert await site.settled() == (1, 2, 1)
    mpesa.set()
    # It works again beside the other one, and before the third.
    assert await site.settled() == (2, 2, 1)
    await site.finish("/asks")
    assert await asks.status() == 200
    assert await site.settled() == (1, 1, 1)
    await site.finish("/other", "/third")
    assert [await call.status() for call in (other, third)] == [200, 200]
    assert await site.settled() == (0, 0, 0)


def waited_for(site: Site) -> asyncio.Event:
    """Return an event that every further call waits for, aside."""
    event = asyncio.Event()

    async def work(_: str, __: Receive, ___: Send) -> None:
        with released_slot():
            await event.wait()

    site.app.work = work
    return event


async def test_gate_calls_waiting_aside_are_bounded() -> None:
    site = Site(max_concurrent=1, max_unanswered=3, queue=1)
    mpesa = waited_for(site)
    *begun, waits, turned_away = site.call("/1", "/2", "/3", "/4", "/5")
    assert await site.settled() == (0, 3, 1)
    assert await turned_away.status() == 503
    mpesa.set()
    await site.finish("/1", "/2", "/3", "/4")
    assert [await call.status() for call in (*begun, waits)] == [200] * 4
    assert await site.settled() == (0, 0, 0)


async def test_gate_one_key_starts_at_most_half_of_the_calls() -> None:
    site = Site(max_concurrent=2, max_unanswered=6, queue=4)
    others = waited_for(site)
    greedy = site.call("/1", "/2", "/3", "/4", "/5", who="greedy")
    assert await site.settled() == (0, 3, 2)
    # The waiting calls of the greedy key block no other, though there is no room for them.
    modest = site.call("/a", "/b", who="modest")
    assert await site.settled() == (0, 5, 2)
    assert site.app.begun == ["/1", "/2", "/3", "/a", "/b"]
    others.set()
    await site.finish("/1", "/2", "/3", "/4", "/5", "/a", "/b")
    assert [await call.status() for call in (*greedy, *modest)] == [200] * 7
    assert await site.settled() == (0, 0, 0)
    # The shares are free again.
    again = site.call("/1", "/2", "/3", who="greedy")
    assert [await call.status() for call in again] == [200] * 3


async def test_gate_full_queue_replaces_a_call_of_the_busiest_key() -> None:
    site = Site(max_concurrent=2, queue=4)
    greedy = site.call("/1", "/2", "/3", "/4", "/5", "/6", "/7", who="greedy")
    assert await greedy[6].status() == 503
    assert await site.settled() == (2, 2, 4)
    (modest,) = site.call("/a", who="modest")
    # The last call of the greedy key is refused, as with one more call in front of it.
    assert await greedy[5].status() == 503
    assert await site.settled() == (2, 2, 4)
    await site.finish("/1")
    assert site.app.begun == ["/1", "/2", "/a"]
    # A call without a key displaces no other.
    (nobody,) = site.call("/n")
    await site.settled()
    await site.finish("/2", "/3", "/4", "/5", "/a", "/n")
    assert [await call.status() for call in (*greedy[:5], modest, nobody)] == [200] * 7
    assert await site.settled() == (0, 0, 0)


async def test_gate_disconnected_call_frees_its_share() -> None:
    site = Site(max_concurrent=1, max_unanswered=2, queue=4)
    for _ in range(3):
        begun, waits = site.call("/1", "/2", who="one")
        await site.settled()
        waits.task.cancel()
        begun.task.cancel()
        assert await site.settled() == (0, 0, 0)
    (last,) = site.call("/3", who="one")
    await site.finish("/3")
    assert await last.status() == 200


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=24),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(0, 6),
)
async def test_gate_shares_hold_for_any_sequence_of_calls(
    steps: list[tuple[str, bool]], at_once: int, unanswered: int, queue: int
) -> None:
    site = Site(max_concurrent=at_once, max_unanswered=unanswered, queue=queue)
    calls: list[tuple[str, str, Call]] = []
    for number, (who, comes) in enumerate(steps):
        if comes or not calls:
            path = f"/{number}"
            calls.append((who, path, site.call(path, who=who)[0]))
        else:
            site.app.step(calls[number % len(calls)][1]).set()
        working, begun, waiting = await site.settled()
        assert working <= at_once
        assert begun <= unanswered
        assert waiting <= queue
        open_ones = [name for name, path, _ in calls if path in site.app.begun and not site.app.step(path).is_set()]
        assert all(open_ones.count(name) <= max(1, unanswered // 2) for name in "abc")
    for _, path, _ in calls:
        site.app.step(path).set()
    assert {await call.status() for _, _, call in calls} <= {200, 503}
    assert await site.settled() == (0, 0, 0)


async def test_gate_several_tasks_of_one_call_free_one_slot() -> None:
    site = Site(max_concurrent=1, queue=5)
    gates = [asyncio.Event(), asyncio.Event()]

    async def wait(event: asyncio.Event) -> None:
        with released_slot():
            await event.wait()

    async def work(path: str, _: Receive, __: Send) -> None:
        if path == "/1":
            await asyncio.gather(*map(wait, gates))

    site.app.work = work
    site.call("/1")
    assert await site.settled() == (0, 1, 0)
    gates[0].set()
    assert await site.settled() == (0, 1, 0)
    gates[1].set()
    assert await site.settled() == (1, 1, 0)
    await site.finish("/1")
    assert await site.settled() == (0, 0, 0)


async def test_gate_task_that_outlives_its_call_is_not_counted() -> None:
    site = Site(max_concurrent=1, queue=5)
    mpesa = asyncio.Event()
    pushes: list[asyncio.Task[None]] = []

    async def push() -> None:
        with released_slot():
            await mpesa.wait()

    async def work(_: str, __: Receive, ___: Send) -> None:
        pushes.append(asyncio.create_task(push()))
        await asyncio.shield(pushes[0])

    site.app.work = work
    (hangs_up,) = site.call("/1")
    assert await site.settled() == (0, 1, 0)
    hangs_up.task.cancel()
    assert await site.settled() == (0, 0, 0)
    mpesa.set()
    await pushes[0]
    assert await site.settled() == (0, 0, 0)


async def test_gate_slow_body_or_slow_reader_frees_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "_SLOW", 0.0)
    site = Site(max_concurrent=1, queue=5)

    async def work(_: str, receive: Receive, __: Send) -> None:
        await receive()

    site.app.work = work
    (slow,) = site.call("/slow")
    await eventually(lambda: has(site, (0, 1, 0)))
    (other,) = site.call("/other")
    other.sent.set()
    await site.finish("/other")
    assert await other.status() == 200
    slow.may_send.clear()
    slow.sent.set()
    site.app.step("/slow").set()
    await eventually(lambda: has(site, (0, 1, 0)))
    slow.may_send.set()
    assert await slow.status() == 200
    assert await site.settled() == (0, 0, 0)


async def has(site: Site, counts: tuple[int, int, int]) -> bool:
    return await site.settled() == counts


async def test_gate_quick_body_keeps_its_slot() -> None:
    site = Site(max_concurrent=1, queue=5)

    async def work(_: str, receive: Receive, __: Send) -> None:
        await receive()

    site.app.work = work
    calls = site.call("/1", "/2")
    for call in calls:
        call.sent.set()
    assert await site.settled() == (1, 1, 1)
    await site.finish("/1", "/2")


async def test_gate_call_that_fails_frees_its_slot() -> None:
    site = Site(max_concurrent=1, queue=5)

    async def work(path: str, _: Receive, __: Send) -> None:
        if path == "/1":
            raise RuntimeError("broken")

    site.app.work = work
    broken, fine = site.call("/1", "/2")
    with pytest.raises(RuntimeError, match="broken"):
        await broken.task
    await site.finish("/2")
    assert await fine.status() == 200
    assert await site.settled() == (0, 0, 0)


async def test_gate_waiting_call_that_disconnects_leaves_the_queue() -> None:
    site = Site(max_concurrent=1, queue=5)
    _, waits, called, last = site.call("/1", "/2", "/3", "/4")
    assert await site.settled() == (1, 1, 3)
    waits.task.cancel()
    assert await site.settled() == (1, 1, 2)
    # Admitted and disconnected at the same time: its slot goes to the next one.
    site.app.step("/1").set()
    for _ in range(50):
        if site.gate.waiting == 1:
            break
        await asyncio.sleep(0)
    called.task.cancel()
    assert await site.settled() == (1, 1, 0)
    assert site.app.begun == ["/1", "/4"]
    await site.finish("/4")
    assert await last.status() == 200
    assert await site.settled() == (0, 0, 0)


async def test_gate_of_a_stopping_process_closes_its_connections() -> None:
    site = Site(max_concurrent=1, queue=0)
    site.is_draining = True
    here, called_back, turned_away = site.call("/1", "/callback", "/2")
    newer = Call(site.gate, "/callback", http_version="2")
    assert await site.settled() == (1, 1, 0)
    await site.finish("/1", "/callback")
    for call in (here, called_back, turned_away):
        await call.status()
        assert call.headers[b"connection"] == b"close"
    await newer.status()
    assert b"connection" not in newer.headers


# -- in front of the gateway --------------------------------------------------------------------------------------


class Holding:
    """A route that holds its calls until the test sets ``over``."""

    def __init__(self) -> None:
        self.over, self.came = asyncio.Event(), asyncio.Event()

        @get("/v1/counter")
        async def counter(caller: PaymentsRead) -> None:  # noqa: ARG001 - calls without a key have slots of their own
            self.came.set()
            await self.over.wait()

        self.plugin = Plugin(name="counter", summary="Holds its calls.", routes=(counter,))


@asynccontextmanager
async def busy(values: dict[str, Any], **http: Any) -> AsyncGenerator[tuple[Gateway, str, Holding]]:
    """Yield a gateway with all slots taken."""
    counter = Holding()
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


async def test_gate_of_a_busy_gateway_accepts_callbacks_and_refuses_api_calls(
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
        # The gate let it in: the callbacks plugin itself rejects an address that is not Safaricom's.
        assert (await api.call("POST", "/v1/webhooks/mpesa", body)).error["code"] == "CALLBACK_REFUSED"
        counter.over.set()
        await eventually(lambda: is_free(gateway))
        assert (await api.pay("254711000001", 5, key="a")).error["code"] == "PROVIDER_NOT_CONFIGURED"


async def is_free(gateway: Gateway) -> bool:
    return gateway.asgi.load_shedder.working == 0


async def test_gate_runs_another_call_while_mpesa_answers(values: dict[str, Any]) -> None:
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


def test_priority_is_set_for_callbacks_and_health_checks_only(values: dict[str, Any]) -> None:
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
def test_route_below_one_with_priority_is_refused(values: dict[str, Any], path: str) -> None:
    @post(path, public=True)
    async def mine() -> None: ...

    plugin = Plugin(name="mine", summary="Overlaps.", routes=(mine,))
    with pytest.raises(PriorityError, match="a priority route needs its own path"):
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
def test_http_settings_that_would_admit_no_call_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        GatewayConfig.from_values(changes)


# -- connections --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def hold(gateway: Gateway, count: int) -> AsyncGenerator[None]:
    """Hold this many connections to Postgres."""
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


async def test_database_reserve_is_left_to_callbacks(values: dict[str, Any]) -> None:
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


async def test_database_reserve_is_not_used_by_creates(values: dict[str, Any]) -> None:
    """A push is not marked from the reserve, and outcomes of pushes use it one at a time."""
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
async def test_database_reserve_of_a_small_pool_leaves_ordinary_connections(
    values: dict[str, Any], pool_max: int, ordinary: int
) -> None:
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


async def test_gate_with_too_many_connections_refuses_calls_and_accepts_callbacks(values: dict[str, Any]) -> None:
    config = GatewayConfig.from_values(values | {"worker": {"in_process": False}})
    async with Gateway(config).running() as gateway:

        async def crowded(scope: Message, receive: Receive, send: Send) -> None:
            await gateway.asgi({**scope, CROWDED: True}, receive, send)

        refused = await send_request(crowded, "GET", b"/v1/merchant/me")
        assert (refused.status, refused.codes) == (503, ["SERVICE_UNAVAILABLE"])
        assert (refused.header(b"retry-after"), refused.header(b"connection")) == (b"1", b"close")
        assert refused.header(b"x-request-id").decode() == refused.json["request_id"]
        assert (await send_request(crowded, "GET", b"/health/live")).status == 200
        assert (await send_request(gateway.asgi, "GET", b"/v1/merchant/me")).status == 401
