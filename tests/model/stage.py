"""What the model plays on: the real gateway, its Postgres, Valkey and worker, and a Daraja for each world."""

# The stage looks behind every door: that is what makes each step one of the model's.
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
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.validation import ReversalRequest
from tests.model.product import REFUSED, Product
from tests.model.wire import Act, MortalDatabase, Wire, live

T = TypeVar("T")

DAWN = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
"""When every example begins."""

ENVS: tuple[Env, ...] = ("sandbox", "live")

PAYBILL, TILL, STORE, MOVED = "174379", "5123456", "600638", "600639"
"""The paybill that two merchants share, a till with its store number, and where a merchant moves to."""

_KEPT = frozenset({"migration", "gateway_secret", "merchant", "api_key", "audit_entry"})
_LONGEST_PROMPT = 45

REFUSED_BODY = "lost: a body that Daraja posted was not taken"
_PUBLIC, _SHOP, _LIVE_DARAJA = "https://gateway.test", "https://live.shop.test", "https://live.daraja.test"
"""Addresses that lead to loopback: the live world is https, and no name of it exists."""

_LIVE_IDS = 1_000_000
"""Where the numbers of the live Daraja's callbacks and results begin, so that a number belongs to one world."""

_SIMULATED = ("sim_push", "sim_callback", "sim_transaction", "sim_reversal", "sim_result", "sim_registration")
"""What the judge reads of both worlds' simulators, as views with the column ``env``."""


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self._at = DAWN

    def now(self) -> datetime:
        """Where it stands, in UTC."""
        return self._at

    def put_back(self) -> None:
        """Begin anew."""
        self._at = DAWN

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._at += timedelta(seconds=seconds)


class SeededBytes:
    """Bytes that a seed decides, so that an example can be repeated; the last four never come again in one run."""

    def __init__(self) -> None:
        self._drawn = 0
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Begin an example."""
        self._seed, self._since = seed, 0

    def __call__(self, size: int) -> bytes:
        """``size`` bytes, 32 at most."""
        self._drawn, self._since = self._drawn + 1, self._since + 1
        some = hashlib.sha256(f"{self._seed}|{self._since}".encode()).digest()
        tail = self._drawn.to_bytes(4, "big") if size >= 8 else b""
        return some[: size - len(tail)] + tail


class Answering:
    """A simulator's way to the gateway: its public address leads to where it listens."""

    def __init__(self, session: Any, base: str) -> None:
        self._session, self._base = session, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def post(self, url: str, **options: Any) -> Any:
        """As niquests' sessions have it."""
        return await self._session.post(url.replace(_PUBLIC, self._base, 1), **options)


@dataclass
class World:
    """Daraja as one world has it: a simulator in a schema of its own."""

    env: Env
    gateway: Gateway
    base: str
    wipe: str = ""

    @property
    def caller(self) -> CallbackCaller:
        """Calls back."""
        return self.gateway.services.get(CallbackCaller)

    @property
    def prompts(self) -> Prompts:
        """The phones' prompts."""
        return self.gateway.services.get(Prompts)

    @property
    def controls(self) -> Controls:
        """What it is told to do."""
        return self.gateway.services.get(Controls)


@dataclass
class Shop:
    """A merchant: who calls in each world, and the credentials that are stored there."""

    number: int
    callers: Mapping[Env, Caller]
    fields: dict[Env, dict[str, Any]] = field(default_factory=dict[Env, dict[str, Any]])


class Stage:
    """One gateway for all examples. ``run`` is the only way in: between two steps the loop stands still."""

    def __init__(self, database_url: str, valkey_url: str) -> None:
        self._urls = (database_url, valkey_url)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = AsyncExitStack()
        self._random = SeededBytes()
        self.clock = HandClock()
        self.worlds: dict[Env, World] = {}
        self.shops: list[Shop] = []
        self.swallowed: list[str] = []
        """What went wrong unexpectedly and was only logged."""
        self.fulfilled: list[str] = []
        """Payments that the host's own subscriber has heard of."""
        self.reversals: dict[str, str] = {}
        """Which refund each reversal in the simulator's ledger was sent for, by the reversal's receipt."""

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
        """Let the loop turn until this is done."""

        async def do() -> T:
            # The process that died in the step before was another one.
            live()
            return await work

        return self._runner.run(do())

    def _listen(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event.get("exc_info"):
            self.swallowed.append(f"{event.get('event')}: {sys.exception()!r}")
        raise structlog.DropEvent

    # -- beginning ------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        database_url, valkey_url = self._urls
        connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
        name = await connection.fetchval("SELECT current_database()")
        # Nothing pulls the plug here, so that no commit need wait for the disk.
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        await connection.close()
        self.receiver: Receiver = await self._stack.enter_async_context(receiving())
        for env in ENVS:
            self.worlds[env] = await self._open_daraja(env)
        at = self._stack.enter_context(listening())
        values = gateway_values(
            database_url,
            valkey_url,
            plugins=[name for name in PLUGINS if name != "simulator"],
            public_url=_PUBLIC,
            daraja={"sandbox_url": f"{self.worlds['sandbox'].base}/simulator", "live_url": _LIVE_DARAJA},
            worker={"in_process": False, "daraja": 2, "deliveries": 2, "maintenance": 2},
            callbacks={"allowlist": ["127.0.0.1"]},
            refunds={"query_after": [60, 300]},
            reconciliation={"tries": 2, "pause": 0.0},
            webhooks={"retry_after": [5, 60, 300]},
        )
        self.gateway = Gateway(GatewayConfig.from_values(values), clock=self.clock, random_bytes=self._random)
        self.gateway.on(PaymentCompleted)(self._fulfil)
        cast(Any, self.gateway.db).__class__ = MortalDatabase
        await self._serve(self.gateway, at)
        self.db = cast(MortalDatabase, self.gateway.db)
        self.product = Product(self.gateway)
        self.product.reach_through(_SHOP, self.receiver.url)
        base = f"http://127.0.0.1:{at.getsockname()[1]}"
        for world in self.worlds.values():
            world.caller._session = cast(Any, Answering(world.caller._session, base))
        self._session = self.gateway.daraja._session
        await self._stack.enter_async_context(self.product.queued())
        await self._show_both_ledgers()
        self._wipe = await _forgetting(self.gateway)

    async def _open_daraja(self, env: Env) -> World:
        """A simulator, served, which does nothing by itself: it calls back when the model says so."""
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
        # Simulators in processes of their own would slow down every step of the model.
        with patch("mpesa_gateway.app.single_gateway", return_value=nullcontext()):
            await self._serve(gateway, at)
        dispatcher = gateway.services.get(CallbackCaller)._dispatcher
        assert dispatcher is not None
        dispatcher.cancel()
        if env == "live":
            for table, column in (("sim_callback", "callback_id"), ("sim_result", "result_id")):
                await gateway.db.execute(f"ALTER TABLE {table} ALTER COLUMN {column} RESTART WITH {_LIVE_IDS}")
            # The two worlds' pushes to one phone in one second have handles of their own.
            await gateway.db.execute("ALTER SEQUENCE sim_handle START 501 RESTART")
        return World(env, gateway, base, await _forgetting(gateway))

    async def _show_both_ledgers(self) -> None:
        for table in _SIMULATED:
            selects = [f"SELECT '{env}' AS env, * FROM {env}_daraja.{table}" for env in ENVS]  # noqa: S608 - our words
            await self.db.execute(f"CREATE VIEW {table} AS {' UNION ALL '.join(selects)}")

    async def _serve(self, gateway: Gateway, at: Any) -> None:
        """Serve a gateway. Connections last: the loop stands still between steps."""
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
        """Put a new wire between the gateway and Daraja; see there."""
        ways = {_LIVE_DARAJA: f"{self.worlds['live'].base}/simulator"}
        wire = Wire(self._session, self.db, perform, arrived, ways)
        self.gateway.daraja._session = cast(Any, wire)
        return wire

    async def begin(self, seed: int, confirm: str, strangers: float, other: str) -> None:
        """A new example: nothing has happened yet, and two shops have just opened.

        The first has the paybill; the ``other`` shares it (``neighbour``), or has a ``till`` of its own.
        """
        self._random.begin(seed)
        self.clock.put_back()
        await _wipe(self.gateway, self._wipe)
        for number, world in enumerate(self.worlds.values()):
            await _wipe(world.gateway, world.wipe)
            await world.controls.set_knobs({"seed": seed + number * _LIVE_IDS, "strangers": strangers})
        await self.gateway.valkey.flushdb()
        self.product.forget()
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
        """Store a shop's credentials of one world, and enable Pull for them, if Daraja answers."""
        fields = INITIATED["mpesa"] | {"env": env, "consumer_key": f"key-{shop.number}-{env}"} | dict(changes)
        await self.product.store_credentials(shop.callers[env], fields)
        shop.fields[env] = fields
        with suppress(*REFUSED):
            await self.product.register(shop.callers[env])

    async def go_live(self, shop: Shop) -> None:
        """A shop that has the sandbox only gets the live world beside it."""
        await self.configure(shop, "live", {})
        await self.product.set_endpoint(shop.callers["live"], self.endpoint_of(shop.number, "live"))

    def endpoint_of(self, number: int, env: Env) -> str:
        """The webhook address of a shop in one world: beside a live merchant none may lead to this machine."""
        return f"{_SHOP}/{number}/{env}"

    async def become(self, shop: Shop, env: Env, initiator: str) -> None:
        """Store the credentials with this initiator: its name decides how the simulator ends reversals."""
        await self.product.store_credentials(shop.callers[env], shop.fields[env] | {"initiator": initiator})

    def caller(self, merchant_id: str, env: Env) -> Caller:
        """This merchant's caller in one world."""
        return next(s.callers[env] for s in self.shops if s.callers[env].merchant_id == merchant_id)

    def shop_of(self, merchant_id: str) -> Shop:
        """The shop of this merchant."""
        return next(shop for shop in self.shops if shop.callers["sandbox"].merchant_id == merchant_id)

    # -- what Daraja and payers do --------------------------------------------------------------------------------

    async def in_worlds(self, sql: str, *values: Any) -> None:
        """Change the simulators' tables of both worlds."""
        for world in self.worlds.values():
            await world.gateway.db.execute(sql, *values)

    async def set_habit(self, operation: str, habit: str) -> None:
        """Change how an operation behaves, in both worlds."""
        for world in self.worlds.values():
            await world.controls.set_habit(operation, habit)

    async def set_fault(self, operation: str, fault: str) -> None:
        """Answer the next request of an operation with a fault, in each world."""
        for world in self.worlds.values():
            await world.controls.set_fault(operation, fault, 1)

    async def world_of(self, checkout_request_id: str) -> World:
        """The world that has this push."""
        env = await self.db.fetchval("SELECT env FROM sim_push WHERE checkout_request_id = $1", checkout_request_id)
        return self.worlds[env]

    async def answer(self, checkout_request_id: str, answer: str) -> None:
        """A finger answers an open prompt."""
        await (await self.world_of(checkout_request_id)).prompts.answer(checkout_request_id, answer)

    async def pass_time(self, seconds: float) -> None:
        """Time passes, and prompts that are not answered end."""
        self.clock.advance(seconds)
        for world in self.worlds.values():
            await world.prompts.end_due()

    async def call_back(self, callback_id: int) -> int:
        """Daraja makes this call, owed or not; gives the HTTP status that it was answered with."""
        world = self.worlds["live" if callback_id >= _LIVE_IDS else "sandbox"]
        (row,) = await world.gateway.db.fetch(
            "SELECT callback_id, body, encoding, tries, callback_url FROM sim_callback "
            "JOIN sim_push USING (checkout_request_id) WHERE callback_id = $1",
            callback_id,
        )
        return await world.caller._send(row)

    async def send_result(self, result_id: int) -> int:
        """Daraja sends this result, owed or not; gives the HTTP status that it was answered with."""
        world = self.worlds["live" if result_id >= _LIVE_IDS else "sandbox"]
        (row,) = await world.gateway.db.fetch("SELECT * FROM sim_result WHERE result_id = $1", result_id)
        return await world.caller._send_result(row)

    async def call_back_all(self) -> None:
        """Daraja makes every call that it owes."""
        for callback_id in await self._owed("callback"):
            assert await self.call_back(callback_id) == 200, REFUSED_BODY
        for result_id in await self._owed("result"):
            assert await self.send_result(result_id) == 200, REFUSED_BODY

    async def _owed(self, what: str) -> list[int]:
        return [
            row[0]
            for row in await self.db.fetch(
                f"SELECT {what}_id FROM sim_{what} WHERE due_at IS NOT NULL ORDER BY 1"  # noqa: S608 - one of two words
            )
        ]

    async def pay_by_hand(self, env: Env, **money: Any) -> str:
        """Somebody pays without a prompt; gives the receipt."""
        return await self.worlds[env].prompts.add_money(**money)

    async def reverse_on_the_portal(self, receipt: str, amount: int, number: int) -> None:
        """A person sends money back by hand, past the gateway."""
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
        await self.worlds[row["env"]].gateway.services.get(Results)._carry_out(request, f"portal-{number}")


async def _forgetting(gateway: Gateway) -> str:
    """SQL that empties every table that examples write to, those that refer to others first."""
    rows = await gateway.db.fetch(
        "SELECT relname, ARRAY(SELECT confrelid::regclass::text FROM pg_constraint WHERE conrelid = pg_class.oid "
        "AND contype = 'f' AND confrelid <> conrelid) AS above FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    above = {row["relname"]: set(row["above"]) - _KEPT for row in rows if row["relname"] not in _KEPT}
    # For so few rows this is quicker than TRUNCATE, which makes new files.
    order: Sequence[str] = list(reversed(list(TopologicalSorter(above).static_order())))
    restart = ["ALTER SEQUENCE sim_chance RESTART", "ALTER SEQUENCE sim_handle RESTART"] if "sim_push" in above else []
    return "; ".join([*(f"DELETE FROM {name}" for name in order), *restart])  # noqa: S608


async def _wipe(gateway: Gateway, statements: str) -> None:
    async with gateway.db.transaction():
        # Nothing of this is ever deleted: with this, no trigger is asked.
        await gateway.db.execute("SET LOCAL session_replication_role = replica")
        await gateway.db.execute(statements)
