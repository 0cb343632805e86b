"""Protects the checks before a call takes a slot: unknown clients are delayed and limited, known callers are not."""

import asyncio
import gzip
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db import migrator
from mpesa_gateway.errors import ServiceUnavailable, TooManyFailures
from mpesa_gateway.http import admission, documents, health, openapi
from mpesa_gateway.http.load_shedding import CROWDED
from mpesa_gateway.http.route_table import RouteTable
from mpesa_gateway.http.throttling import LONGEST, Throttle
from mpesa_gateway.http.work_limits import WorkLimit
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.security.rate_limits import AUTH
from mpesa_gateway.security.scopes import ADMIN
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from tests.asgi import AsgiAnswer, Headers, send_request
from tests.conftest import Harness
from tests.routes import operations, whole_gateway

UNKNOWN_KEY = "sk_test_" + "0" * 48
"""A key in our format that was never created."""


@dataclass(frozen=True)
class ProxiedGateway:
    """A gateway behind a proxy: a test chooses the client address of each request."""

    gateway: Gateway
    base: str
    api: Api

    async def ask(
        self, method: str, path: str, source: str = "203.0.113.1", *, key: str | None = None, **more: Any
    ) -> AsgiAnswer:
        """Send one request from this address."""
        headers: Headers = ((b"x-forwarded-for", source.encode()), *more.pop("headers", ()))
        if key is not None:
            headers = (*headers, (b"x-api-key", key.encode()))
        return await send_request(self.gateway.asgi, method, path.encode(), headers, **more)


@asynccontextmanager
async def proxied_gateway(values: dict[str, Any], **changes: Any) -> AsyncGenerator[ProxiedGateway]:
    """Yield a gateway that trusts this machine as its proxy, and a shop."""
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    values["worker"] = {"in_process": False}
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change
    async with running_gateway(values) as (gateway, base), shop(gateway, base, is_configured=False) as api:
        yield ProxiedGateway(gateway, base, api)


# -- API keys ---------------------------------------------------------------------------------------------------------


async def test_access_without_a_known_key_takes_no_slot(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxied_gateway(values, limits={"auth_failures": 5}) as proxied:
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        entered: list[str] = []
        gate = proxied.gateway.asgi.load_shedder
        enter = gate._enter  # pyright: ignore[reportPrivateUsage] - a call takes its slot with it

        async def noted(who: str) -> bool:
            entered.append(who)
            return await enter(who)

        monkeypatch.setattr(gate, "_enter", noted)
        for key in (None, "", "sk_test_wrong", "sk_live_" + "0" * 47, UNKNOWN_KEY):
            assert (await proxied.ask("GET", "/v1/payments", key=key)).status == 401, key
        # From here on the address is limited: it is rejected as cheaply.
        assert [(await proxied.ask("GET", "/v1/payments", key=UNKNOWN_KEY)).status for _ in range(3)] == [401, 429, 429]
        for method, path in (("GET", "/v1/nothing"), ("POST", "/v1/nothing/at/all"), ("PATCH", "/v1/payments")):
            assert (await proxied.ask(method, path)).status in {404, 405}
        assert entered == []
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        # Its share is counted for the key.
        assert entered == [f"key_{(proxied.api.key or '').split('_')[2][:26]}"]


async def test_access_of_a_limited_address_is_refused_without_postgres_and_a_right_key_passes(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer than a second for the following calls.
    monkeypatch.setattr(admission, "_TRICKLE", 3600.0)
    async with proxied_gateway(values, limits={"auth_failures": 3}) as proxied:
        assert [(await proxied.ask("GET", "/v1/payments", key=UNKNOWN_KEY)).status for _ in range(3)] == [401] * 3
        looked_up: list[str] = []
        find = proxied.gateway.api_keys._find  # pyright: ignore[reportPrivateUsage] - the query of Postgres

        async def noted(key_id: str) -> Any:
            looked_up.append(key_id)
            return await find(key_id)

        monkeypatch.setattr(proxied.gateway.api_keys, "_find", noted)
        refused = [await proxied.ask("GET", "/v1/payments", key=UNKNOWN_KEY) for _ in range(8)]
        assert {said.status for said in refused} == {429}
        # A started second counts as a whole one.
        assert 0 < int(refused[0].header(b"retry-after")) <= 301
        # One key in a second is looked up, so that a key without earlier calls can pass from there too.
        assert len(looked_up) == 1
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 429
        monkeypatch.setattr(admission, "_TRICKLE", 0.0)
        proxied.gateway.asgi.access._trickle = admission._RetryLimit()  # pyright: ignore[reportPrivateUsage] - a second later
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        monkeypatch.setattr(admission, "_TRICKLE", 3600.0)
        # After its first success, the key passes at once.
        assert {(await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status for _ in range(5)} == {200}
        assert (await proxied.ask("GET", "/v1/payments", "203.0.113.2", key=UNKNOWN_KEY)).status == 401


async def test_access_without_a_key_is_not_counted_as_a_failure(values: dict[str, Any]) -> None:
    async with proxied_gateway(values, limits={"auth_failures": 2}) as proxied:
        assert {(await proxied.ask("GET", "/v1/payments")).status for _ in range(6)} == {401}
        assert proxied.gateway.limits.blocked_seconds(AUTH, "203.0.113.1") == 0


async def test_access_with_a_revoked_key_is_refused_at_once(values: dict[str, Any]) -> None:
    async with proxied_gateway(values) as proxied:
        caller = await proxied.gateway.api_keys.authenticate(proxied.api.key)
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        assert proxied.gateway.api_keys.was_valid(proxied.api.key or "")
        await proxied.gateway.api_keys.revoke(caller.merchant_id, caller.key_id, actor="test")
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 401
        assert not proxied.gateway.api_keys.was_valid(proxied.api.key or "")


async def test_access_failures_are_limited_without_valkey(values: dict[str, Any]) -> None:
    async with proxied_gateway(
        values, valkey={"url": "valkey://127.0.0.1:9/0"}, limits={"auth_failures": 3}
    ) as proxied:
        statuses = [(await proxied.ask("GET", "/v1/payments", key="sk_test_wrong")).status for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        assert (await proxied.ask("GET", "/v1/payments", "203.0.113.2", key="sk_test_wrong")).status == 401
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status in {200, 429}


async def test_access_limit_is_shared_with_other_processes_through_valkey(values: dict[str, Any]) -> None:
    async with proxied_gateway(values, limits={"auth_failures": 2}) as proxied:
        other = Gateway(GatewayConfig.from_values(values | {"public_url": proxied.base}))
        async with other.running():
            for _ in range(2):
                await other.limits.count_failure(AUTH, "203.0.113.7")
            assert proxied.gateway.limits.blocked_seconds(AUTH, "203.0.113.7") == 0
            with pytest.raises(TooManyFailures):
                await proxied.gateway.limits.check_failures(AUTH, "203.0.113.7")
            # Known here from now on, without a query.
            assert 0 < proxied.gateway.limits.blocked_seconds(AUTH, "203.0.113.7") <= 301


async def test_access_failures_have_one_audit_entry_for_each_address_and_window(values: dict[str, Any]) -> None:
    async with proxied_gateway(values, limits={"auth_failures": 2}) as proxied:
        before = (await proxied.gateway.audit.page(1, None, None, None, count=True)).total or 0
        for source in ("203.0.113.1", "2001:db8::1", "2001:db8::2"):
            for _ in range(10):
                await proxied.ask("GET", "/v1/payments", source, key="sk_test_wrong")
        entries = (await proxied.gateway.audit.page(100, None, None, None)).rows
        assert (await proxied.gateway.audit.page(1, None, None, None, count=True)).total == before + 4
        assert sorted((entry.action, entry.detail["from"]) for entry in entries[:4]) == [
            ("auth.failed", "2001:db8::1"),
            ("auth.failed", "203.0.113.1"),
            ("auth.limited", "2001:db8::1"),
            ("auth.limited", "203.0.113.1"),
        ]


def test_sampler_first_of_a_window_has_the_count_skipped_in_the_one_before() -> None:
    now = 0.0
    sampler = Sampler(60.0, now=lambda: now)
    assert [sampler.admit("a") for _ in range(4)] == [0, None, None, None]
    assert sampler.admit("b") == 0
    now = 60.0
    assert [sampler.admit("a"), sampler.admit("a"), sampler.admit("b")] == [3, None, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=40))
def test_sampler_samples_of_a_key_are_a_window_apart_and_nothing_is_lost(
    came: list[tuple[int, int]],
) -> None:
    now, last, seen, counted = 0.0, dict[int, float](), 0, 0
    sampler = Sampler(60.0, now=lambda: now)
    for key, pause in came:
        now += pause
        seen += 1
        left_out = sampler.admit(key)
        if left_out is not None:
            assert now - last.get(key, -60.0) >= 60.0
            last[key] = now
            counted += 1 + left_out
    now += 60.0
    counted += sum(found for key in range(6) if (found := sampler.admit(key)) is not None)
    assert counted == seen


# -- pace -------------------------------------------------------------------------------------------------------------


def test_pace_of_an_address_has_a_burst_then_its_rate_and_a_longest_delay() -> None:
    now, chances = 0.0, count()
    pace = Throttle(10, 100, now=lambda: now, chance=lambda: next(chances) / 1000)
    assert [round(pace.delay("a"), 3) for _ in range(20)] == [0.0] * 20
    assert [round(pace.delay("a"), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    delays = [pace.delay("a") for _ in range(200)]
    assert max(delays) <= LONGEST + 1e-9
    # Calls that came at once continue one after the other.
    assert min(delays[100:]) >= LONGEST / 2
    assert len(set(delays[100:])) == 100
    assert pace.delay("b") == 0.0
    now = 100.0
    assert pace.delay("a") == 0.0


@given(st.lists(st.integers(0, 10), max_size=80), st.integers(1, 20))
def test_pace_admits_no_address_faster_than_its_rate(pauses: list[int], rate: int) -> None:
    """Undelayed calls are at most the burst and the rate."""
    now, admitted = 0.0, 0
    pace = Throttle(rate, 100, now=lambda: now)
    for pause in pauses:
        now += pause / 20
        admitted += pace.delay("a") == 0.0
    assert admitted <= 2 * rate + rate * now + 1


async def test_pace_limits_waiting_calls_in_all_and_of_one_address() -> None:
    pace = Throttle(1, 3)
    tasks = [asyncio.create_task(pace.admit("a", longest=0.05)) for _ in range(6)]
    results = await asyncio.gather(*tasks)
    assert results == [True] * 4 + [False] * 2
    assert pace.held == 0


async def test_pace_of_all_addresses_together_is_four_times_the_rate_of_one() -> None:
    pace = Throttle(10, 100, now=lambda: 0.0)
    admitted = [await pace.admit(f"203.0.113.{host}", longest=0.0) for host in range(100)]
    assert admitted == [True] * 100
    assert [round(pace.delay("all", 4), 3) for _ in range(2)] == [0.525, 0.55]


async def test_access_calls_with_one_new_key_share_a_lookup_and_are_not_delayed(
    values: dict[str, Any],
) -> None:
    async with proxied_gateway(values, http={"anonymous_per_second": 1}) as proxied:
        looked_up: list[str] = []
        find = proxied.gateway.api_keys._find  # pyright: ignore[reportPrivateUsage] - the query of Postgres
        may = asyncio.Event()

        async def noted(key_id: str) -> Any:
            looked_up.append(key_id)
            await may.wait()
            return await find(key_id)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proxied.gateway.api_keys, "_find", noted)
            calls = [asyncio.create_task(proxied.ask("GET", "/v1/payments", key=proxied.api.key)) for _ in range(12)]
            await eventually(lambda: has_begun(looked_up))
            may.set()
            async with asyncio.timeout(3):
                assert {said.status for said in await asyncio.gather(*calls)} == {200}
        assert len(looked_up) <= 2


async def has_begun(looked_up: list[str]) -> bool:
    return bool(looked_up)


async def test_access_of_a_fast_address_is_delayed_and_no_other(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxied_gateway(values, http={"anonymous_per_second": 2}) as proxied:
        # Rendered before, so that no call below takes a second.
        assert (await proxied.ask("GET", "/schema", "198.51.100.1")).status == 200
        delays: list[float] = []
        pace = proxied.gateway.asgi.access._pace  # pyright: ignore[reportPrivateUsage] - the delay under test

        async def admit(who: str, *, longest: float = LONGEST, **_: bool) -> bool:
            if (delay := pace.delay(who)) > 0.01:
                delays.append(min(delay, longest))
            return True

        monkeypatch.setattr(pace, "admit", admit)
        for path in ("/v1/payments", "/schema", "/v1/nothing", "/ops/login", "/v1/webhooks/mpesa"):
            delays.clear()
            source = f"203.0.113.{len(path)}"
            for _ in range(4):
                await proxied.ask("GET", path, source)
            assert delays == [], path
            await proxied.ask("GET", path, source)
            assert len(delays) == 1, path
        delays.clear()
        assert {(await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status for _ in range(10)} == {200}
        listed = "196.201.214.200"
        for _ in range(10):
            await proxied.ask("POST", "/v1/webhooks/mpesa", listed, body=[b"{}"])
        token = (
            proxied.gateway.port(Callbacks)
            .url_for("stk", env="sandbox", merchant_id="mer_" + "0" * 26, subject_id="pay_" + "0" * 26)
            .removeprefix(proxied.base)
        )
        for _ in range(10):
            await proxied.ask("POST", token, "203.0.113.200", body=[b"{}"])
        assert delays == []
        for _ in range(10):
            assert (await proxied.ask("GET", "/health/live", "203.0.113.201")).status == 200
        assert delays
        assert max(delays) <= 0.5


async def test_access_under_load_refuses_unknown_clients_and_passes_known_callers(values: dict[str, Any]) -> None:
    async with proxied_gateway(values) as proxied:
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        app = proxied.gateway.asgi

        async def crowded(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {CROWDED: True}, receive, send)

        refused = await send_request(crowded, "GET", b"/v1/payments")
        assert (refused.status, refused.header(b"connection")) == (503, b"close")
        known = await send_request(crowded, "GET", b"/v1/payments", ((b"x-api-key", (proxied.api.key or "").encode()),))
        assert known.status == 200
        assert (await send_request(crowded, "GET", b"/health/live")).status == 200


# -- bodies -----------------------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """A request without the end of its body, and its answer."""

    task: "asyncio.Task[None]"
    sent: list[Any]

    @property
    def status(self) -> int:
        """The status of the answer, 0 without one."""
        return int(self.sent[0]["status"]) if self.sent else 0


def posts_half(proxied: ProxiedGateway, path: str, source: str) -> Slow:
    """Send half of a body."""
    first = [{"type": "http.request", "body": b"name=a", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        if first:
            return first.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"x-forwarded-for", source.encode()), (b"content-length", b"1000")]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
    }
    return Slow(asyncio.create_task(proxied.gateway.asgi(scope, receive, send)), sent)


@pytest.mark.parametrize("path", ["/ops/login", "/v1/webhooks/mpesa", "/ops/anything"])
async def test_access_bodies_of_unknown_clients_take_no_slot_and_few_of_one_address_wait(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(admission, "_SHORT", 0.05)
    # The waiting ones are never answered here, even on a slow machine.
    monkeypatch.setattr(admission, "_BODY_TIME", 3600.0)
    async with proxied_gateway(
        values, http={"max_concurrent": 1, "queue": 0, "max_unanswered": 1, "anonymous_max_concurrent": 2}
    ) as proxied:
        posts = [posts_half(proxied, path, f"2001:db8:0:1::{host:x}") for host in range(1, 31)]
        # All but two time out soon.
        await eventually(lambda: answered(posts, 28))
        assert sum(not post.status for post in posts) == 2
        assert {post.status for post in posts if post.status} == {408}
        refused = next(post for post in posts if post.status)
        assert (b"connection", b"close") in refused.sent[0]["headers"]
        # A whole body from the same address is accepted, and an API call finds the only slot free.
        whole = await proxied.ask("POST", path, "2001:db8:0:1::1", body=[b"name=a"])
        assert whole.status in {401, 403, 404, 415, 422}
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        assert (proxied.gateway.asgi.load_shedder.working, proxied.gateway.asgi.load_shedder.unanswered) == (0, 0)
        for post in posts:
            post.task.cancel()
        await asyncio.gather(*(post.task for post in posts), return_exceptions=True)


async def answered(posts: list[Slow], count: int) -> bool:
    return sum(bool(post.status) for post in posts) >= count


async def test_access_body_of_an_unknown_client_times_out_after_ten_seconds(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert admission._BODY_TIME <= 10.0  # pyright: ignore[reportPrivateUsage] - the value under test
    monkeypatch.setattr(admission, "_BODY_TIME", 0.05)
    async with proxied_gateway(values) as proxied:
        post = posts_half(proxied, "/ops/login", "203.0.113.1")
        await post.task
        assert post.status == 408


async def test_access_login_body_over_the_limit_is_refused(values: dict[str, Any]) -> None:
    async with proxied_gateway(values) as proxied:
        for headers in ((), ((b"content-length", b"70000"),), ((b"transfer-encoding", b"chunked"),)):
            said = await proxied.ask("POST", "/ops/login", headers=headers, body=[b"x" * 5000, b"x" * 5000])
            assert said.status in ({413} if headers else {413, 403}), headers
        said = await proxied.ask("POST", "/ops/payments/x", headers=((b"content-length", b"70000"),))
        assert said.status == 413


async def test_access_body_that_is_read_ahead_arrives_whole(values: dict[str, Any]) -> None:
    async with proxied_gateway(values) as proxied:
        body = [b'{"Body": {"stkCallback": {"CheckoutRequestID": "ws_1",', b' "ResultCode": 1, "ResultDesc": "no"}}}']
        said = await proxied.ask("POST", "/v1/webhooks/mpesa", headers=((b"transfer-encoding", b"chunked"),), body=body)
        assert said.codes == ["CALLBACK_REFUSED"]
        kept = await proxied.gateway.db.fetchval("SELECT original FROM refused_callback")
        assert kept.encode() == b"".join(body)


# -- pages ------------------------------------------------------------------------------------------------------------


async def test_access_pages_take_no_slot_of_an_api_call(values: dict[str, Any]) -> None:
    async with (
        proxied_gateway(values, http={"max_concurrent": 1, "queue": 0, "wait": 0.0}) as proxied,
        hold_page(proxied),
    ):
        assert (await proxied.ask("GET", "/v1/payments", key=proxied.api.key)).status == 200
        assert (await proxied.ask("GET", "/ops/login", "203.0.113.9")).status == 503


async def test_access_pages_of_one_address_leave_slots_to_others(values: dict[str, Any]) -> None:
    async with proxied_gateway(values, http={"anonymous_max_concurrent": 2}) as proxied:
        place = proxied.gateway.asgi.access._place_at_pages  # pyright: ignore[reportPrivateUsage] - the slots of pages
        async with place("2001:db8:0:1::/64"), place("2001:db8:0:1::/64"):
            assert (await proxied.ask("GET", "/ops/login", "2001:db8:0:1::9")).status == 503
            assert (await proxied.ask("GET", "/ops/login", "2001:db8:0:2::9")).status == 200
        assert (await proxied.ask("GET", "/ops/login", "2001:db8:0:1::9")).status == 200


@asynccontextmanager
async def hold_page(proxied: ProxiedGateway) -> AsyncGenerator[None]:
    """Hold one slot of the pages."""
    pages = proxied.gateway.asgi.access._pages  # pyright: ignore[reportPrivateUsage] - the slots of pages
    assert await pages._enter("")  # pyright: ignore[reportPrivateUsage] - the same
    try:
        yield
    finally:
        pages.end(is_working=True)


async def test_documents_are_rendered_once_and_answered_as_bytes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[str] = []
    describe = openapi.document_of

    def noted(app: Any) -> dict[str, Any]:
        times.append("")
        return describe(app)

    monkeypatch.setattr(documents, "document_of", noted)
    app = harness.gateway.asgi
    answers = await asyncio.gather(*(send_request(app, "GET", b"/schema") for _ in range(20)))
    assert len(times) == 1
    assert len({said.body for said in answers}) == 1
    for path in (b"/schema", b"/schema/", b"/schema/openapi.json"):
        said = await send_request(app, "GET", path)
        assert (said.status, int(said.header(b"content-length"))) == (200, len(said.body))
        etag = said.header(b"etag")
        for given_etag in (etag, b"W/" + etag, b'"other", ' + etag, b"*"):
            again = await send_request(app, "GET", path, ((b"if-none-match", given_etag),))
            assert (again.status, again.body, again.header(b"etag")) == (304, b"", etag)
        assert (await send_request(app, "GET", path, ((b"if-none-match", b'"other"'),))).status == 200
        head = await send_request(app, "HEAD", path)
        assert (head.status, head.body, head.header(b"content-length")) == (200, b"", said.header(b"content-length"))
    assert len(times) == 1


async def test_health_checks_at_the_same_time_share_one_examination(values: dict[str, Any]) -> None:
    async with proxied_gateway(values) as proxied:
        times: list[str] = []
        pending = migrator.pending

        async def noted(*args: Any) -> Any:
            times.append("")
            return await pending(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(health, "pending", noted)
            answers = await asyncio.gather(*(proxied.ask("GET", "/health/ready") for _ in range(20)))
            assert {said.status for said in answers} == {200}
            assert len(times) == 1
            assert (await proxied.ask("GET", "/health/ready")).status == 200
            assert len(times) == 2

            async def slowed(*_: Any, **__: Any) -> bool:
                await asyncio.sleep(0.02)
                return True

            # A fast address receives the answer of up to a second ago.
            patch.setattr(proxied.gateway.asgi.access._pace, "admit", slowed)  # pyright: ignore[reportPrivateUsage] - the delay under test
            assert (await proxied.ask("GET", "/health/ready")).status == 200
            assert len(times) == 2


# -- every route ------------------------------------------------------------------------------------------------------


def filled(path: str) -> str:
    """Return a path with a value for each parameter."""
    return "/".join("x" if part.startswith("{") else part for part in path.split("/"))


def test_route_table_finds_every_route_with_its_needs() -> None:
    table = RouteTable(whole_gateway().asgi.litestar)
    for each in operations():
        for path in (filled(each.path), filled(each.path) + "/"):
            found = table.find(path)
            assert found is not None, each
            if each.method == "OPTIONS":
                continue
            traits = found.traits(each.method)
            assert traits is not None, each
            assert traits.needs_key == (each.scope is not None), each
            assert traits.has_priority == bool(each.handler.opt.get("priority")), each
    for path in ("/v1", "/v2/payments", "/v1/payments/x/y/z/w", "/health", "/v1/cb/stk"):
        assert table.find(path) is None, path


async def test_head_is_answered_as_get_without_its_body(harness: Harness) -> None:
    app, key = harness.gateway.asgi, ((b"x-api-key", (harness.api.key or "").encode()),)
    for path in (b"/health/live", b"/health/ready", b"/v1/payments", b"/ops/login", b"/v1/merchant/me"):
        got, head = await send_request(app, "GET", path, key), await send_request(app, "HEAD", path, key)
        assert (got.status, head.status, head.body) == (200, 200, b""), path
        assert head.header(b"content-type") == got.header(b"content-type")
    walked = 0
    for each in operations():
        if each.method == "GET" and each.path.startswith(("/v1", "/health", "/schema")):
            head = await send_request(app, "HEAD", filled(each.path).encode(), key)
            assert (head.status != 405, head.body) == (True, b""), each
            walked += 1
    assert walked > 25
    assert (await send_request(app, "HEAD", b"/v1/webhooks/mpesa", key)).status == 405
    assert (await send_request(app, "HEAD", b"/v1/payments")).status == 401


async def test_every_answer_has_headers_against_caching_framing_and_sniffing(harness: Harness) -> None:
    app = harness.gateway.asgi
    key = ((b"x-api-key", (harness.api.key or "").encode()),)
    for each in operations():
        for headers in ((), key):
            said = await send_request(app, each.method, filled(each.path).encode(), headers)
            check_headers(each, said)
    for path in (b"/", b"//", b"/v1/nothing", b"/%2e%2e", b"/v1/payments?\xff"):
        check_headers(path, await send_request(app, "GET", path))


def check_headers(what: object, said: AsgiAnswer) -> None:
    """Raises AssertionError for an answer that lacks one of the headers."""
    assert said.header(b"x-content-type-options") == b"nosniff", what
    assert b"frame-ancestors 'none'" in said.header(b"content-security-policy"), what
    assert b"default-src 'none'" in said.header(b"content-security-policy"), what
    assert said.header(b"referrer-policy") in {b"no-referrer", b"same-origin"}, what
    assert said.header(b"x-frame-options") == b"DENY", what
    kept = said.header(b"cache-control")
    is_public = kept.startswith(b"public") or (kept == b"no-cache" and said.header(b"etag"))
    is_public = is_public or said.header(b"content-type").startswith(b"text/event-stream")
    assert kept == b"no-store" or is_public, (what, kept)


async def test_new_api_key_answer_is_not_cacheable(values: dict[str, Any]) -> None:
    async with (
        proxied_gateway(values) as proxied,
        shop(proxied.gateway, proxied.base, scopes=(ADMIN,), is_configured=False) as admin,
    ):
        merchant = (await admin.call("POST", "/v1/admin/merchants", {"name": "Duka"})).data["merchant_id"]
        made = await admin.call("POST", f"/v1/admin/merchants/{merchant}/keys", {"name": "till"})
        assert made.data["api_key"].startswith("sk_test_")
        assert made.headers["Cache-Control"] == "no-store"
        assert made.headers["X-Content-Type-Options"] == "nosniff"


async def test_compressed_body_is_refused_with_advice(harness: Harness) -> None:
    body = gzip.compress(b'{"amount": 5, "phone": "254711000001"}')
    for coding in (b"gzip", b"GZIP", b"br", b"deflate, gzip"):
        said = await send_request(
            harness.gateway.asgi,
            "POST",
            b"/v1/payments",
            (
                (b"x-api-key", (harness.api.key or "").encode()),
                (b"content-type", b"application/json"),
                (b"content-encoding", coding),
                (b"idempotency-key", b"a"),
                (b"content-length", str(len(body)).encode()),
            ),
            [body],
        )
        assert (said.status, said.codes) == (415, ["UNSUPPORTED_MEDIA_TYPE"])
        assert "without Content-Encoding" in said.json["errors"][0]["message"]


async def test_body_with_a_byte_order_mark_is_accepted(harness: Harness) -> None:
    made = await harness.api.call(
        "POST",
        "/v1/payments",
        raw=b"\xef\xbb\xbf" + b'{"amount": 5, "phone": "254711000001"}',
        headers={"Idempotency-Key": "bom", "Content-Encoding": "identity"},
    )
    assert made.status == 201


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_log_samples_refused_callbacks_and_unknown_clients(values: dict[str, Any]) -> None:
    async with proxied_gateway(values) as proxied:
        with structlog.testing.capture_logs() as lines:
            for _ in range(10):
                await proxied.ask("POST", "/v1/webhooks/mpesa/x", body=[b"{}"])
                await proxied.ask("GET", "/v1/payments")
                await proxied.ask("GET", f"/v1/nothing/{_}")
            await proxied.ask("POST", "/v1/webhooks/mpesa/x", "203.0.113.2", body=[b"{}"])
        events = [(line["event"], line.get("route")) for line in lines]
        assert events.count(("callback_refused", None)) == 2
        assert events.count(("request", "/v1/webhooks/mpesa/{token}")) == 2
        assert events.count(("request", "/v1/payments")) == 1
        assert events.count(("request", "(unknown)")) == 1
        with structlog.testing.capture_logs() as lines:
            for _ in range(3):
                await proxied.ask("GET", "/v1/payments/x", key=proxied.api.key)
        # A refusal of a known caller is logged each time.
        assert [line["event"] for line in lines].count("request") == 3


# -- turns ------------------------------------------------------------------------------------------------------------


async def test_turns_are_bounded_for_each_client_and_in_all() -> None:
    turns = WorkLimit(1, each=2, queue=2, wait=30)
    over, order = asyncio.Event(), list[str]()

    async def work(who: str) -> None:
        async with turns.acquire(who):
            order.append(who)
            await over.wait()

    tasks = [asyncio.create_task(work(who)) for who in ("a", "a", "a", "b", "c")]
    await settle()
    assert order == ["a"]
    for refused in (tasks[2], tasks[4]):
        with pytest.raises(ServiceUnavailable):
            await refused
    over.set()
    await asyncio.gather(tasks[0], tasks[1], tasks[3])
    assert order == ["a", "a", "b"]
    await work("c")


async def test_turns_after_a_timeout_or_cancellation_are_free() -> None:
    turns = WorkLimit(1, each=5, queue=5, wait=0.01)
    async with turns.acquire("a"):
        with pytest.raises(ServiceUnavailable):
            async with turns.acquire("b"):
                raise AssertionError
        task = asyncio.create_task(take_once(turns, lambda: None))
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with turns.acquire("b"):
        pass


async def take_once(turns: WorkLimit, done: Callable[[], None]) -> None:
    async with turns.acquire("c"):
        done()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
