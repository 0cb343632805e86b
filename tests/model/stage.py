"""The environment of the model: the real gateway, its Postgres, Valkey and worker, and a simulator for each env."""

# The stage uses private methods: this keeps the model's steps small.
# pyright: reportPrivateUsage=false

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any, Self, TypeVar, cast
from unittest.mock import patch

import asyncpg
import structlog
import uvicorn
import uvloop

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.scopes import Caller, Env
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, PLUGINS, gateway_values, listening
from mpesa_gateway_payments.events import PaymentCompleted
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.poster import CallbackPoster
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.validation import ReversalRequest
from tests.model.product import REFUSED, Product
from tests.model.wire import Act, KillableDatabase, Wire, start_process

T = TypeVar("T")

DAWN = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
"""The start of every example."""

ENVS: tuple[Env, ...] = ("sandbox", "live")

PAYBILL, TILL, STORE, MOVED = "174379", "5123456", "600638", "600639"
"""The paybill that two merchants share, a till with its store number, and the paybill of a later move."""

_KEPT = frozenset({"migration", "gateway_secret", "merchant", "api_key", "audit_entry"})
_LONGEST_PROMPT = 45

REFUSED_BODY = "lost: a body that Daraja posted was not taken"
_PUBLIC, _SHOP, _LIVE_DARAJA = "https://gateway.test", "https://live.shop.test", "https://live.daraja.test"
"""Addresses that lead to loopback: live is https, and its host names do not exist."""

_LIVE_IDS = 1_000_000
"""The first ids of the live simulator's callbacks and results: an id belongs to one env."""

_SIMULATED = ("sim_push", "sim_callback", "sim_transaction", "sim_reversal", "sim_result", "sim_registration")
"""Tables of both simulators, as views with the column ``env``, for the verifier."""


class HandClock:
    """A clock set by the test."""

    def __init__(self) -> None:
        self._at = DAWN

    def now(self) -> datetime:
        return self._at

    def reset(self) -> None:
        """Reset to the start."""
        self._at = DAWN

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self._at += timedelta(seconds=seconds)


class SeededBytes:
    """Seeded random bytes, so that an example can be repeated; the last four are unique in one run."""

    def __init__(self) -> None:
        self._drawn = 0
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Start an example."""
        self._seed, self._since = seed, 0

    def __call__(self, size: int) -> bytes:
        """Return ``size`` bytes, 32 at most."""
        self._drawn, self._since = self._drawn + 1, self._since + 1
        some = hashlib.sha256(f"{self._seed}|{self._since}".encode()).digest()
        tail = self._drawn.to_bytes(4, "big") if size >= 8 else b""
        return some[: size - len(tail)] + tail


class Answering:
    """A simulator's HTTP session: the gateway's public address leads to its local port."""

    def __init__(self, session: Any, base: str) -> None:
        self._session, self._base = session, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def post(self, url: str, **options: Any) -> Any:
        return await self._session.post(url.replace(_PUBLIC, self._base, 1), **options)


@dataclass
class SimulatedEnv:
    """Daraja of one env: a simulator in its own schema."""

    env: Env
    gateway: Gateway
    base: str
    wipe: str = ""

    @property
    def caller(self) -> CallbackCaller:
        """The sender of callbacks."""
        return self.gateway.services.get(CallbackCaller)

    @property
    def prompts(self) -> Prompts:
        """The open prompts."""
        return self.gateway.services.get(Prompts)

    @property
    def controls(self) -> Controls:
        """The simulator's controls."""
        return self.gateway.services.get(Controls)


@dataclass
class Shop:
    """A merchant: its caller and its stored credentials in each env."""

    number: int
    callers: Mapping[Env, Caller]
    fields: dict[Env, dict[str, Any]] = field(default_factory=dict[Env, dict[str, Any]])


class Stage:
    """One gateway for all examples. ``run`` is the only entry: between two steps the event loop does not run."""

    def __init__(self, database_url: str, valkey_url: str) -> None:
        self._urls = (database_url, valkey_url)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = AsyncExitStack()
        self._random = SeededBytes()
        self.clock = HandClock()
        self.envs: dict[Env, SimulatedEnv] = {}
        self.shops: list[Shop] = []
        self.swallowed: list[str] = []
        """Unexpected errors that were only logged."""
        self.fulfilled: list[str] = []
        """Payments that the host's own subscriber received."""
        self.reversals: dict[str, str] = {}
        """The refund of each reversal in the simulator's ledger, by the reversal's receipt."""

    def __enter__(self) -> Self:
        self._runner.__enter__()
        structlog.configure(processors=[self._listen])
        try:
            self.run(self._open())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self._stack.aclose())
        finally:
            structlog.reset_defaults()
            self._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the event loop until this is done."""

        async def do() -> T:
            # The process that died in the previous step was another one.
            start_process()
            return await work

        return self._runner.run(do())

    def _listen(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event.get("exc_info"):
            self.swallowed.append(f"{event.get('event')}: {sys.exception()!r}")
        raise structlog.DropEvent

    # -- set-up -------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        database_url, valkey_url = self._urls
        connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
        name = await connection.fetchval("SELECT current_database()")
        # No test simulates a power failure, so commits need not wait for the disk.
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        await connection.close()
        self.receiver: Receiver = await self._stack.enter_async_context(receiving())
        for env in ENVS:
            self.envs[env] = await self._open_daraja(env)
        at = self._stack.enter_context(listening())
        values = gateway_values(
            database_url,
            valkey_url,
            plugins=[name for name in PLUGINS if name != "simulator"],
            public_url=_PUBLIC,
            daraja={"sandbox_url": f"{self.envs['sandbox'].base}/simulator", "live_url": _LIVE_DARAJA},
            worker={"in_process": False, "daraja": 2, "deliveries": 2, "maintenance": 2},
            callbacks={"allowlist": ["127.0.0.1"]},
            refunds={"query_after": [60, 300]},
            reconciliation={"tries": 2, "pause": 0.0},
            webhooks={"retry_after": [5, 60, 300]},
        )
        self.gateway = Gateway(GatewayConfig.from_values(values), clock=self.clock, random_bytes=self._random)
        self.gateway.on(PaymentCompleted)(self._fulfil)
        cast(Any, self.gateway.db).__class__ = KillableDatabase
        await self._serve(self.gateway, at)
        self.db = cast(KillableDatabase, self.gateway.db)
        self.product = Product(self.gateway)
        self.product.reach_through(_SHOP, self.receiver.url)
        base = f"http://127.0.0.1:{at.getsockname()[1]}"
        for simulated in self.envs.values():
            poster = simulated.gateway.services.get(CallbackPoster)
            poster._session = cast(Any, Answering(poster._session, base))
        self._session = self.gateway.daraja._session
        await self._stack.enter_async_context(self.product.queued())
        await self._show_both_ledgers()
        self._wipe = await _forgetting(self.gateway)

    async def _open_daraja(self, env: Env) -> SimulatedEnv:
        """Serve a simulator that does nothing by itself: it posts callbacks on request."""
        database_url, valkey_url = self._urls
        at = self._stack.enter_context(listening())
        base = f"http://127.0.0.1:{at.getsockname()[1]}"
        values = gateway_values(
            database_url,
            valkey_url,
            plugins=["simulator"],
            public_url=base,
            database={"schema": f"{env}_daraja", "pool_max": 5},
            valkey={"prefix": f"{env}daraja"},
            worker={"in_process": False},
            simulator={"callback_delay": _LONGEST_PROMPT, "prompt_timeout": _LONGEST_PROMPT, "slow_answer": 0},
        )
        gateway = Gateway(GatewayConfig.from_values(values), clock=self.clock, random_bytes=SeededBytes())
        # Simulators in separate processes would slow down every step. A dispatcher that starts and is cancelled could
        # still hold locks.
        with (
            patch("mpesa_gateway.app.single_gateway", return_value=nullcontext()),
            patch.object(CallbackCaller, "_dispatch", _dispatch_nothing),
        ):
            await self._serve(gateway, at)
        if env == "live":
            for table, column in (("sim_callback", "callback_id"), ("sim_result", "result_id")):
                await gateway.db.execute(f"ALTER TABLE {table} ALTER COLUMN {column} RESTART WITH {_LIVE_IDS}")
            # Pushes of both envs to one phone in one second have different ids.
            await gateway.db.execute("ALTER SEQUENCE sim_handle START 501 RESTART")
        return SimulatedEnv(env, gateway, base, await _forgetting(gateway))

    async def _show_both_ledgers(self) -> None:
        for table in _SIMULATED:
            selects = [f"SELECT '{env}' AS env, * FROM {env}_daraja.{table}" for env in ENVS]  # noqa: S608 - constants of this file
            await self.db.execute(f"CREATE VIEW {table} AS {' UNION ALL '.join(selects)}")

    async def _serve(self, gateway: Gateway, at: Any) -> None:
        """Serve a gateway. Connections come last: the event loop stops between steps."""
        config = uvicorn.Config(
            gateway.asgi, log_config=None, access_log=False, proxy_headers=False, timeout_keep_alive=10_000
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[at]))

        async def end() -> None:
            server.should_exit = True
            await task

        self._stack.push_async_callback(end)
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the gateway did not start")
            await asyncio.sleep(0.01)

    async def _fulfil(self, event: PaymentCompleted) -> None:
        self.fulfilled.append(event.payment_id)

    def connect(
        self, perform: Callable[[Act], Awaitable[None]], arrived: Callable[[str, Any], Awaitable[None]]
    ) -> Wire:
        """Replace the wire between the gateway and Daraja."""
        ways = {_LIVE_DARAJA: f"{self.envs['live'].base}/simulator"}
        wire = Wire(self._session, self.db, perform, arrived, ways)
        self.gateway.daraja._session = cast(Any, wire)
        return wire

    async def begin(self, seed: int, confirm: str, strangers: float, other: str) -> None:
        """Start a new example: no payments, two new shops.

        The first has the paybill; the ``other`` shares it (``neighbour``), or has a ``till`` of its own.
        """
        self._random.begin(seed)
        self.clock.reset()
        await _wipe(self.gateway, self._wipe)
        for number, simulated in enumerate(self.envs.values()):
            await _wipe(simulated.gateway, simulated.wipe)
            await simulated.controls.set_knobs({"seed": seed + number * _LIVE_IDS, "strangers": strangers})
        await self.gateway.valkey.flushdb()
        self.product.clear_caches()
        self.product.confirm(confirm)
        self.db.breaks = 0
        self.receiver.received.clear()
        self.receiver.status, self.receiver.answer = 200, None
        self.swallowed.clear()
        self.fulfilled.clear()
        self.reversals.clear()
        own = {"shortcode": STORE, "till_number": TILL} if other == "till" else {}
        self.shops = []
        for number, fields in enumerate(({}, own)):
            shop = Shop(number, await self.product.open(f"Shop {number}"))
            self.shops.append(shop)
            await self.product.set_endpoint(shop.callers["sandbox"], self.endpoint_of(number, "sandbox"))
            await self.configure(shop, "sandbox", fields)

    async def configure(self, shop: Shop, env: Env, changes: Mapping[str, Any]) -> None:
        """Store a shop's credentials of one env, and register Pull for them if Daraja answers."""
        fields = INITIATED["mpesa"] | {"env": env, "consumer_key": f"key-{shop.number}-{env}"} | dict(changes)
        await self.product.store_credentials(shop.callers[env], fields)
        shop.fields[env] = fields
        with suppress(*REFUSED):
            await self.product.register(shop.callers[env])

    async def go_live(self, shop: Shop) -> None:
        """Add the live env to a shop with sandbox only."""
        await self.configure(shop, "live", {})
        await self.product.set_endpoint(shop.callers["live"], self.endpoint_of(shop.number, "live"))

    def endpoint_of(self, number: int, env: Env) -> str:
        """Return a shop's webhook address in one env: a live merchant may have none that leads to this machine."""
        return f"{_SHOP}/{number}/{env}"

    async def store_initiator(self, shop: Shop, env: Env, initiator: str) -> None:
        """Store credentials with this initiator: its name decides how the simulator ends reversals."""
        await self.product.store_credentials(shop.callers[env], shop.fields[env] | {"initiator": initiator})

    def caller(self, merchant_id: str, env: Env) -> Caller:
        """Return this merchant's caller in one env."""
        return next(s.callers[env] for s in self.shops if s.callers[env].merchant_id == merchant_id)

    def shop_of(self, merchant_id: str) -> Shop:
        """Return the shop of this merchant."""
        return next(shop for shop in self.shops if shop.callers["sandbox"].merchant_id == merchant_id)

    # -- Daraja and payers --------------------------------------------------------------------------------------------

    async def in_each_env(self, sql: str, *values: Any) -> None:
        """Change the tables of both simulators."""
        for simulated in self.envs.values():
            await simulated.gateway.db.execute(sql, *values)

    async def set_habit(self, operation: str, habit: str) -> None:
        """Change the behaviour of an operation in both envs."""
        for simulated in self.envs.values():
            await simulated.controls.set_habit(operation, habit)

    async def set_fault(self, operation: str, fault: str) -> None:
        """Answer the next request of an operation with a fault, in each env."""
        for simulated in self.envs.values():
            await simulated.controls.set_fault(operation, fault, 1)

    async def env_with_push(self, checkout_request_id: str) -> SimulatedEnv:
        """Return the env with this push."""
        env = await self.db.fetchval("SELECT env FROM sim_push WHERE checkout_request_id = $1", checkout_request_id)
        return self.envs[env]

    async def answer(self, checkout_request_id: str, answer: str) -> None:
        """A payer answers an open prompt."""
        await (await self.env_with_push(checkout_request_id)).prompts.answer(checkout_request_id, answer)

    async def pass_time(self, seconds: float) -> None:
        """Advance time and expire unanswered prompts."""
        self.clock.advance(seconds)
        for simulated in self.envs.values():
            await simulated.prompts.end_due()

    async def call_back(self, callback_id: int) -> int:
        """Post this callback, due or not; returns the HTTP status of the answer."""
        simulated = self.envs["live" if callback_id >= _LIVE_IDS else "sandbox"]
        (row,) = await simulated.gateway.db.fetch(
            "SELECT callback_id, body, encoding, tries, callback_url FROM sim_callback "
            "JOIN sim_push USING (checkout_request_id) WHERE callback_id = $1",
            callback_id,
        )
        return await simulated.caller._send(row)

    async def send_result(self, result_id: int) -> int:
        """Post this result, due or not; returns the HTTP status of the answer."""
        simulated = self.envs["live" if result_id >= _LIVE_IDS else "sandbox"]
        (row,) = await simulated.gateway.db.fetch("SELECT * FROM sim_result WHERE result_id = $1", result_id)
        return await simulated.caller._send_result(row)

    async def call_back_all(self) -> None:
        """Post every due callback."""
        for callback_id in await self._owed("callback"):
            assert await self.call_back(callback_id) == 200, REFUSED_BODY
        for result_id in await self._owed("result"):
            assert await self.send_result(result_id) == 200, REFUSED_BODY

    async def _owed(self, what: str) -> list[int]:
        return [
            row[0]
            for row in await self.db.fetch(
                f"SELECT {what}_id FROM sim_{what} WHERE due_at IS NOT NULL ORDER BY 1"  # noqa: S608 - one of two constants
            )
        ]

    async def pay_by_hand(self, env: Env, **money: Any) -> str:
        """Pay without a prompt; returns the receipt."""
        return await self.envs[env].prompts.add_money(**money)

    async def reverse_on_the_portal(self, receipt: str, amount: int, number: int) -> None:
        """Reverse a transaction on M-Pesa's portal, outside the gateway."""
        row = await self.db.fetchrow("SELECT env, shortcode FROM sim_transaction WHERE receipt = $1", receipt)
        if row is None:
            return
        request = ReversalRequest(
            initiator="a person",
            shortcode=row["shortcode"],
            receipt=receipt,
            amount=amount,
            result_url="",
            timeout_url="",
        )
        await self.envs[row["env"]].gateway.services.get(Results)._carry_out(request, f"portal-{number}")


async def _dispatch_nothing(_: CallbackCaller) -> None:
    """The model posts callbacks itself."""


async def _forgetting(gateway: Gateway) -> str:
    """Return SQL that empties every table that examples write to, referring tables first."""
    rows = await gateway.db.fetch(
        "SELECT relname, ARRAY(SELECT confrelid::regclass::text FROM pg_constraint WHERE conrelid = pg_class.oid "
        "AND contype = 'f' AND confrelid <> conrelid) AS above FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    above = {row["relname"]: set(row["above"]) - _KEPT for row in rows if row["relname"] not in _KEPT}
    # For few rows this is faster than TRUNCATE, which creates new files.
    order: Sequence[str] = list(reversed(list(TopologicalSorter(above).static_order())))
    restart = ["ALTER SEQUENCE sim_chance RESTART", "ALTER SEQUENCE sim_handle RESTART"] if "sim_push" in above else []
    return "; ".join([*(f"DELETE FROM {name}" for name in order), *restart])  # noqa: S608


async def _wipe(gateway: Gateway, statements: str) -> None:
    async with gateway.db.transaction():
        # These tables reject deletion: this setting disables the triggers.
        await gateway.db.execute("SET LOCAL session_replication_role = replica")
        await gateway.db.execute(statements)
