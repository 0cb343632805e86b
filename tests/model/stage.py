"""What the model plays on: the real gateway, its Postgres, Valkey and worker, and Daraja's simulator, step by step."""

# The stage looks behind every door: that is what makes each step one of ours.
# pyright: reportPrivateUsage=false

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any, Self, TypeVar, cast

import asyncpg
import msgspec
import structlog
import uvicorn
import uvloop

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.scopes import MERCHANT_SCOPES, Caller
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, gateway_values, listening
from mpesa_gateway_callbacks.service import CallbackInbox
from mpesa_gateway_credentials.schemas import SetProvider
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_payments.checks import StatusChecks
from mpesa_gateway_payments.events import PaymentCompleted
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_reconciliation.service import Reconciliation
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_simulator.service import Simulator
from mpesa_gateway_simulator.validation import ReversalRequest
from mpesa_gateway_webhooks.deliveries import Deliveries
from mpesa_gateway_webhooks.endpoints import Endpoints
from mpesa_gateway_webhooks.schemas import ReplayMany
from tests.model.wire import Act, MortalDatabase, Wire, live

T = TypeVar("T")

DAWN = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
"""When every example begins."""

SWEEPS = (
    "payments.expire",
    "payments.sweep",
    "refunds.sweep",
    "callbacks.sweep",
    "webhooks.sweep",
    "kernel.sweep_events",
)
"""The crons that hand over what is due."""

_KEPT = frozenset({"migration", "gateway_secret", "merchant", "api_key", "audit_entry", "receiver", "shortcode"})
_LONGEST_PROMPT = 45


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
        tail = self._drawn.to_bytes(4, "big") if size > 8 else b""
        return some[: size - len(tail)] + tail


class Stage:
    """One gateway for all examples. ``run`` is the only way in: between two steps the loop stands still."""

    def __init__(self, database_url: str, valkey_url: str) -> None:
        self._urls = (database_url, valkey_url)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = AsyncExitStack()
        self._random = SeededBytes()
        self.clock = HandClock()
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
            # Whoever died in the step before was somebody else.
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
        # Nobody pulls the plug here, so that no commit need wait for the disk.
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        await connection.close()
        at = self._stack.enter_context(listening())
        base = f"http://127.0.0.1:{at.getsockname()[1]}"
        values = gateway_values(
            database_url,
            valkey_url,
            public_url=base,
            daraja={"sandbox_url": base + "/simulator"},
            worker={"in_process": False},
            refunds={"ask_after": [60, 300]},
            reconciliation={"tries": 2, "pause": 0.0},
            webhooks={"retry_after": [5, 60, 300]},
            simulator={"callback_delay": _LONGEST_PROMPT, "prompt_timeout": _LONGEST_PROMPT, "slow_answer": 0},
        )
        self.gateway = Gateway(GatewayConfig.from_values(values), clock=self.clock, random_bytes=self._random)
        self.gateway.on(PaymentCompleted)(self._fulfil)
        cast(Any, self.gateway.db).__class__ = MortalDatabase
        await self._serve(at)
        self._find_parts()
        # Daraja calls back when the model says so, and not by itself.
        assert self.simulator._dispatcher is not None
        self.simulator._dispatcher.cancel()
        self._session = self.gateway.daraja._session
        self.receiver: Receiver = await self._stack.enter_async_context(receiving())
        self.workers = list(self.gateway.worker().workers.values())
        for worker in self.workers:
            await worker.queue.connect()
            self._stack.push_async_callback(worker.queue.disconnect)
        self._wipe = await self._forgetting()

    async def _serve(self, at: Any) -> None:
        """Serve the gateway, and with it the simulator. Connections last: the loop stands still between steps."""
        config = uvicorn.Config(
            self.gateway.asgi, log_config=None, access_log=False, proxy_headers=False, timeout_keep_alive=10_000
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

    def _find_parts(self) -> None:
        services = self.gateway.services
        self.db = self.gateway.db
        self.payments = services.get(PaymentService)
        self.checks = services.get(StatusChecks)
        self.refunds = services.get(RefundService)
        self.reconciliation = services.get(Reconciliation)
        self.deliveries = services.get(Deliveries)
        self.inbox = services.get(CallbackInbox)
        self.simulator = services.get(Simulator)

    async def _fulfil(self, event: PaymentCompleted) -> None:
        self.fulfilled.append(event.payment_id)

    async def _forgetting(self) -> str:
        """SQL that empties every table that examples write to, those that refer to others first."""
        rows = await self.db.fetch(
            "SELECT relname, ARRAY(SELECT confrelid::regclass::text FROM pg_constraint WHERE conrelid = pg_class.oid "
            "AND contype = 'f' AND confrelid <> conrelid) AS above FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        )
        above = {row["relname"]: set(row["above"]) - _KEPT for row in rows if row["relname"] not in _KEPT}
        # For so few rows this is quicker than TRUNCATE, which makes new files.
        order = reversed(list(TopologicalSorter(above).static_order()))
        return "; ".join([*(f"DELETE FROM {name}" for name in order), "ALTER SEQUENCE sim_chance RESTART"])  # noqa: S608

    def connect(
        self, perform: Callable[[Act], Awaitable[None]], arrived: Callable[[str, Any], Awaitable[None]]
    ) -> Wire:
        """Put a new wire between the gateway and Daraja; see there."""
        wire = Wire(self._session, self.db, perform, arrived)
        self.gateway.daraja._session = cast(Any, wire)
        return wire

    async def begin(self, seed: int, confirm: str) -> None:
        """A new example: nothing has happened yet, and a shop has just opened."""
        self._random.begin(seed)
        self.clock.put_back()
        async with self.db.transaction():
            # Nothing of this is ever deleted: with this, no trigger is asked.
            await self.db.execute("SET LOCAL session_replication_role = replica")
            await self.db.execute(self._wipe)
        await self.gateway.valkey.flushdb()
        self.gateway.daraja._tokens._tokens.clear()
        await self.simulator.set_knobs({"seed": seed})
        self.payments._settings = msgspec.structs.replace(self.payments._settings, confirm=confirm)
        self.receiver.received.clear()
        self.receiver.status, self.receiver.answer = 200, None
        self.swallowed.clear()
        self.fulfilled.clear()
        self.reversals.clear()
        merchant = await self.gateway.merchants.create("Shop", actor="model")
        self.caller = Caller(merchant.merchant_id, "key_model", frozenset(MERCHANT_SCOPES), "sandbox")
        await self.gateway.services.get(Endpoints).set_url(self.caller, self.receiver.url)
        await self.become("testapi")
        await self.reconciliation.register(self.caller)

    async def become(self, initiator: str) -> None:
        """Store the shop's credentials with this initiator: its name decides how the simulator ends reversals."""
        fields = INITIATED["mpesa"] | {"initiator": initiator}
        body = msgspec.convert({"provider": "mpesa", "mpesa": fields}, SetProvider)
        store = self.gateway.services.get(CredentialStore)
        await store.store(self.caller, body)
        self.shortcode_id = (await store.get(self.caller.merchant_id, self.caller.env)).shortcode_id

    # -- what Daraja and payers do --------------------------------------------------------------------------------

    async def pass_time(self, seconds: float) -> None:
        """Time passes, and prompts that nobody answers end."""
        self.clock.advance(seconds)
        await self.simulator._end_due()

    async def call_back(self, callback_id: int) -> int:
        """Daraja makes this call, owed or not; gives the HTTP status that it was answered with."""
        (row,) = await self.db.fetch(
            "SELECT callback_id, body, tries, callback_url FROM sim_callback JOIN sim_push USING (checkout_request_id) "
            "WHERE callback_id = $1",
            callback_id,
        )
        return await self.simulator._send(row)

    async def send_result(self, result_id: int) -> int:
        """Daraja sends this result, owed or not; gives the HTTP status that it was answered with."""
        (row,) = await self.db.fetch("SELECT * FROM sim_result WHERE result_id = $1", result_id)
        return await self.simulator._send_result(row)

    async def call_back_all(self) -> None:
        """Daraja makes every call that it owes."""
        for callback_id in await self._owed("callback"):
            assert await self.call_back(callback_id) == 200
        for result_id in await self._owed("result"):
            assert await self.send_result(result_id) == 200

    async def _owed(self, what: str) -> list[int]:
        return [
            row[0]
            for row in await self.db.fetch(
                f"SELECT {what}_id FROM sim_{what} WHERE due_at IS NOT NULL ORDER BY 1"  # noqa: S608 - one of two words
            )
        ]

    async def reverse_on_the_portal(self, receipt: str, amount: int, number: int) -> None:
        """Somebody sends money back by hand, past the gateway."""
        row = await self.db.fetchrow("SELECT shortcode FROM sim_transaction WHERE receipt = $1", receipt)
        assert row is not None
        request = ReversalRequest(
            initiator="a person",
            shortcode=row["shortcode"],
            receipt=receipt,
            amount=amount,
            result_url="",
            timeout_url="",
        )
        await self.simulator.results._carry_out(request, f"portal-{number}")

    # -- what workers do ------------------------------------------------------------------------------------------

    async def cron(self, name: str) -> None:
        """One cron fires."""
        await self.gateway.jobs_by_name[name].fn(self.gateway)

    async def work(self) -> None:
        """Workers take what is on the queues until they are empty."""
        while sum([await worker.queue.count("queued") for worker in self.workers]):
            for worker in self.workers:
                if await worker.queue.count("queued"):
                    await worker.process()

    async def count_failed(self) -> int:
        """How many jobs have failed."""
        return sum([await worker.queue.count_failed() for worker in self.workers])

    async def ask_due(self) -> None:
        """What a worker would do about everything that is due, without the queue."""
        now = self.clock.now()
        await self.payments.end_due()
        for row in await self.db.fetch("SELECT payment_id FROM payment WHERE due_at <= $1 ORDER BY 1", now):
            await self.payments.ask(row["payment_id"])
        for row in await self.db.fetch("SELECT refund_id FROM refund WHERE due_at <= $1 ORDER BY 1", now):
            await self.refunds.ask(row["refund_id"])

    async def replay_everything(self) -> None:
        """The merchant has every delivery sent again that it did not take."""
        await self.deliveries.replay_many(self.caller, ReplayMany(since=DAWN, status="dead"))
        await self.deliveries.replay_many(self.caller, ReplayMany(since=DAWN, status="pending"))
