"""What can go wrong: each fault begins, lasts, and is mended, at moments that a seed decides."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import niquests
import valkey.asyncio
from valkey.exceptions import ValkeyError

from bench.chaos.merchant import MOODS, Endpoint
from bench.chaos.site import Process, Site

RESULT_HABITS = (
    "never",
    "twice",
    "before_ack",
    "late",
    "timeout",
    "single_parameter",
    "text_code",
    "ack_lost",
    "internal_error",
    "intermediate_first",
)
PULL_HABITS = (
    "several_lists",
    "http_500_when_empty",
    "malformed_row",
    "partial_msisdn",
    "no_zone",
    "z_meaning_eat",
    "html_200",
    "cents",
    "internal_error",
)
DARAJA_FAULTS = ("400.003.02", "404.001.03", "500.001.1001", "500.003.02", "500.003.03", "500.003.1001")
OPERATIONS = ("oauth", "stkpush", "stkquery", "transactionstatus", "reversal", "pullquery")


@dataclass
class Chaos:
    """Everything that a fault needs, and the count of what was done."""

    site: Site
    endpoint: Endpoint
    rng: random.Random
    http: niquests.AsyncSession
    api_key: str
    operator_key: str
    say: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter[str])
    busy: set[str] = field(default_factory=set[str])

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """Turn one of the simulator's knobs; a simulator that is away is left alone."""
        with suppress(niquests.RequestException, OSError):
            answer = await self.http.request(
                method, f"{self.site.daraja}/simulator/control{path}", json=body, timeout=5
            )
            return answer.json().get("data")
        return None

    async def pushes(self, query: str) -> list[dict[str, Any]]:
        """Pushes as the simulator lists them."""
        return await self.control("GET", f"/pushes{query}") or []

    async def ask(self, method: str, path: str, body: Any = None, *, as_operator: bool = False) -> None:
        """Call the gateway as the merchant, or as its operator; whatever it answers is fine."""
        headers = {"X-API-Key": self.operator_key if as_operator else self.api_key}
        with suppress(niquests.RequestException, OSError):
            await self.http.request(method, self.site.base + path, json=body, headers=headers, timeout=20)

    async def lasts(self, least: float, most: float) -> None:
        """Let the fault be for a while."""
        await asyncio.sleep(self.rng.uniform(least, most))


Fault = Callable[[Chaos], AbstractAsyncContextManager[None]]
Step = Callable[[Chaos], AsyncGenerator[None]]

FAULTS: dict[str, tuple[str, Fault]] = {}
"""By name: the part of the site that it breaks (one fault at a time for each), and the fault."""


def fault(area: str) -> Callable[[Step], Fault]:
    """Register a fault: before its ``yield`` it breaks something, afterwards it mends it."""

    def register(step: Step) -> Fault:
        made = asynccontextmanager(step)
        FAULTS[step.__name__] = (area, made)
        return made

    return register


async def _replace(chaos: Chaos, process: Process, **environ: str) -> None:
    process.begin(**environ)
    if process.port:
        await chaos.site.is_up(process)


@fault("api")
async def api_killed(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGKILL of an API process."""
    process = chaos.rng.choice(chaos.site.apis)
    process.kill()
    await chaos.lasts(0.2, 3)
    yield
    await _replace(chaos, process)


@fault("worker")
async def worker_killed(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGKILL of a worker."""
    process = chaos.rng.choice(chaos.site.workers)
    process.kill()
    await chaos.lasts(0.2, 3)
    yield
    await _replace(chaos, process)


@fault("api")
async def api_stopped_dead(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGSTOP of an API process: it sleeps through its timeouts and leases and goes on as if nothing were."""
    process = chaos.rng.choice(chaos.site.apis)
    process.pause()
    await chaos.lasts(1, 15)
    yield
    process.resume()


@fault("worker")
async def worker_stopped_dead(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGSTOP of a worker."""
    process = chaos.rng.choice(chaos.site.workers)
    process.pause()
    await chaos.lasts(1, 15)
    yield
    process.resume()


@fault("api")
async def api_replaced(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGTERM and a new process, one API after the other, as a deploy does."""
    yield
    for process in chaos.site.apis:
        await asyncio.to_thread(process.end)
        await _replace(chaos, process)


@fault("worker")
async def worker_replaced(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGTERM and a new process, one worker after the other."""
    yield
    for process in chaos.site.workers:
        await asyncio.to_thread(process.end)
        await _replace(chaos, process)


@fault("api")
async def api_clock_skewed(chaos: Chaos) -> AsyncGenerator[None]:
    """An API process whose clock is wrong."""
    process = chaos.rng.choice(chaos.site.apis)
    process.kill()
    await _replace(chaos, process, CHAOS_SKEW=str(chaos.rng.choice((-90, -20, 20, 90))))
    await chaos.lasts(3, 8)
    yield
    await asyncio.to_thread(process.end)
    await _replace(chaos, process)


@fault("worker")
async def worker_clock_skewed(chaos: Chaos) -> AsyncGenerator[None]:
    """A worker whose clock is wrong."""
    process = chaos.rng.choice(chaos.site.workers)
    process.kill()
    await _replace(chaos, process, CHAOS_SKEW=str(chaos.rng.choice((-90, -20, 20, 90))))
    await chaos.lasts(3, 8)
    yield
    await asyncio.to_thread(process.end)
    await _replace(chaos, process)


@fault("valkey")
async def valkey_killed(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGKILL of Valkey, which comes back with its data."""
    await _kill(chaos.site.standalone.valkey.pid)
    await chaos.lasts(0.2, 4)
    yield
    await _mend(chaos)


@fault("valkey")
async def valkey_lost(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGKILL of Valkey, which comes back empty."""
    await _kill(chaos.site.standalone.valkey.pid)
    chaos.site.forget_valkey()
    await chaos.lasts(0.2, 4)
    yield
    await _mend(chaos)


@fault("valkey")
async def valkey_flushed(chaos: Chaos) -> AsyncGenerator[None]:
    """FLUSHALL."""
    client = valkey.asyncio.from_url(chaos.site.standalone.valkey.url)  # type: ignore[no-untyped-call]
    with suppress(ValkeyError, OSError):
        await client.flushall()
    await client.aclose()
    yield


@fault("valkey")
async def valkey_disk_full(chaos: Chaos) -> AsyncGenerator[None]:
    """No room for Valkey's log: it refuses every write."""
    chaos.site.fill_disk()
    await chaos.lasts(2, 6)
    yield
    chaos.site.empty_disk()


@fault("postgres")
async def postgres_killed(chaos: Chaos) -> AsyncGenerator[None]:
    """SIGKILL of Postgres."""
    await _kill(chaos.site.standalone.postgres.pid)
    await chaos.lasts(0.2, 2)
    yield
    await _mend(chaos)


@fault("postgres")
async def postgres_connections_dropped(chaos: Chaos) -> AsyncGenerator[None]:
    """Every connection to Postgres is reset, and new ones are refused for up to ten seconds."""
    chaos.site.to_postgres.refuses = True
    chaos.site.to_postgres.cut()
    await chaos.lasts(0, 10)
    yield
    chaos.site.to_postgres.refuses = False


@fault("postgres")
async def postgres_backends_terminated(chaos: Chaos) -> AsyncGenerator[None]:
    """pg_terminate_backend of every connection."""
    with suppress(asyncpg.PostgresError, OSError):
        connection = await asyncpg.connect(chaos.site.standalone.postgres.url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'mpesa-gateway' AND pid <> pg_backend_pid()"
        )
        await connection.close()
    yield


@fault("daraja")
async def daraja_slow(chaos: Chaos) -> AsyncGenerator[None]:
    """Daraja answers late, at times later than we wait."""
    chaos.site.to_daraja.delay = chaos.rng.uniform(0.5, 9)
    await chaos.lasts(2, 6)
    yield
    chaos.site.to_daraja.delay = 0.0


@fault("daraja")
async def daraja_resets(chaos: Chaos) -> AsyncGenerator[None]:
    """Daraja takes requests, and the connection is reset before the answer."""
    chaos.site.to_daraja.cut_share = chaos.rng.uniform(0.2, 1)
    chaos.site.to_daraja.cut()
    await chaos.lasts(1, 5)
    yield
    chaos.site.to_daraja.cut_share = 0.0
    chaos.site.to_daraja.cut()


@fault("daraja")
async def daraja_away(chaos: Chaos) -> AsyncGenerator[None]:
    """Nobody listens at Daraja's address."""
    chaos.site.to_daraja.refuses = True
    chaos.site.to_daraja.cut()
    await chaos.lasts(1, 5)
    yield
    chaos.site.to_daraja.refuses = False


@fault("simulator")
async def daraja_faults(chaos: Chaos) -> AsyncGenerator[None]:
    """Daraja answers with one of its error codes: spike arrest, invalid token, internal error."""
    order = {
        "operation": chaos.rng.choice(OPERATIONS),
        "fault": chaos.rng.choice(DARAJA_FAULTS),
        "times": chaos.rng.randint(1, 8),
    }
    await chaos.control("POST", "/faults", order)
    yield


@fault("simulator")
async def results_misbehave(chaos: Chaos) -> AsyncGenerator[None]:
    """Results of status queries and reversals are lost, late, doubled, early or odd; and Pull answers oddly."""
    habits = {
        "reversal": chaos.rng.choice(RESULT_HABITS),
        "transactionstatus": chaos.rng.choice(RESULT_HABITS),
        "pullquery": chaos.rng.choice(PULL_HABITS),
    }
    await chaos.control("PATCH", "/habits", habits)
    await chaos.lasts(2, 8)
    yield
    await chaos.control("PATCH", "/habits", dict.fromkeys(habits, "normal"))


@fault("callbacks")
async def callbacks_repeated(chaos: Chaos) -> AsyncGenerator[None]:
    """Old callbacks come once more, out of order."""
    pushes = await chaos.pushes("?state=ended&limit=200")
    for push in chaos.rng.sample(pushes, min(len(pushes), 10)):
        for _ in range(chaos.rng.randint(1, 3)):
            await chaos.control("POST", f"/pushes/{push['checkout_request_id']}/callback")
    yield


@fault("callbacks")
async def callbacks_forged(chaos: Chaos) -> AsyncGenerator[None]:
    """Somebody who knows addresses posts what M-Pesa never said: with wrong signatures, about other payments."""
    pushes = await chaos.pushes("?limit=100")
    for push in chaos.rng.sample(pushes, min(len(pushes), 5)):
        other = chaos.rng.choice(pushes)["checkout_request_id"]
        path = f"/pushes/{push['checkout_request_id']}/forge"
        if other != push["checkout_request_id"]:
            await chaos.control("POST", path, {"about": other})
        await chaos.control("POST", path, {"signature": "Zm9yZ2Vk"})
    yield


@fault("merchant")
async def merchant_misbehaves(chaos: Chaos) -> AsyncGenerator[None]:
    """The merchant's endpoint is down, slow, broken, redirects, or hangs in the middle of its answer."""
    chaos.endpoint.mood = chaos.rng.choice(MOODS[1:])
    await chaos.lasts(2, 8)
    yield
    chaos.endpoint.mood = "well"


@fault("twice")
async def everything_at_once(chaos: Chaos) -> AsyncGenerator[None]:
    """Two reconciliations, every sweeper twice, and questions about the same payments, all at the same moment."""
    names = ("payments.sweep", "refunds.sweep", "webhooks.sweep", "callbacks.sweep", "kernel.sweep_events")
    client: Any = valkey.asyncio.from_url(chaos.site.standalone.valkey.url)  # type: ignore[no-untyped-call]
    from saq.queue.redis import RedisQueue  # noqa: PLC0415 - SAQ takes half a second to import

    queue = RedisQueue(client, name="mpesa")
    work: list[Awaitable[Any]] = [chaos.ask("POST", "/v1/payments/mpesa/reconcile", {}) for _ in range(2)]

    async def wake(name: str) -> None:
        with suppress(ValkeyError, OSError, TimeoutError):
            async with asyncio.timeout(2):
                await queue.enqueue(name)

    work += [wake(name) for name in names for _ in range(2)]
    await asyncio.gather(*work, return_exceptions=True)
    with suppress(ValkeyError, OSError):
        await client.aclose()
    yield


async def _kill(pid: int | None) -> None:
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)


async def _mend(chaos: Chaos) -> None:
    """Start Postgres and Valkey again until both run."""
    servers = (chaos.site.standalone.postgres, chaos.site.standalone.valkey)
    while any(server.pid is None for server in servers):
        for sentence in await asyncio.to_thread(chaos.site.standalone.mend):
            chaos.say(sentence)
        await asyncio.sleep(0.1)


async def rage(chaos: Chaos, names: list[str], until: Callable[[], bool], at_once: int = 2) -> None:
    """Break one thing after the other, ``at_once`` at a time, never two in the same area, until told to stop."""

    async def one() -> None:
        while not until():
            free = [name for name in names if FAULTS[name][0] not in chaos.busy]
            if not free:
                await asyncio.sleep(0.1)
                continue
            name = chaos.rng.choice(free)
            area, made = FAULTS[name]
            chaos.busy.add(area)
            chaos.counts[name] += 1
            chaos.say(name)
            try:
                async with made(chaos):
                    pass
            finally:
                chaos.busy.discard(area)
            await asyncio.sleep(chaos.rng.uniform(0, 1.5))

    await asyncio.gather(*(one() for _ in range(at_once)))
