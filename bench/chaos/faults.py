"""What can go wrong: each fault begins, lasts, and is mended, at moments that a seed decides."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import niquests
import valkey.asyncio
from valkey.exceptions import ValkeyError

from bench.chaos.merchant import Endpoint, Mood
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
    "intermediate_last",
    "parameters_list",
    "float_code",
    "empty_timeout",
    "ack_code_zeros",
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
    "words_500_when_empty",
    "404_when_empty",
    "code_zero",
    "latin1_row",
    "amount_exponent",
    "amount_float",
)
_OTHER_FAULTS = (
    "400.003.02",
    "401.002.01_token",
    "404.001.03",
    "500.001.1001",
    "500.001.1001_no_iccid",
    "500.002.1001_maintenance",
    "500.003.03",
)
_PROXIES = (
    "429.001.01",
    "html_429",
    "firewall_403",
    "proxy_quota_429",
    "proxy_spike_arrest_429",
    "proxy_spike_arrest_500",
    "proxy_token_401",
)
_UNREADABLE = ("bad_redirect", "switching_101", "not_gzip", "html_200", "empty_200", "500.002.1001_internal")
_BROKEN_CHUNK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{"
_SPELLINGS = ("latin1", "raw_tab", "lone_surrogate", "bom", "float_code", "float_numbers", "exponent_amount")
_OPERATIONS = ("oauth", "stkquery", "transactionstatus", "reversal", "pullquery")
"""Besides pushes, which meet every fault that is ordered."""

_MANY = 100_000

_PATIENCE = 90
"""Seconds that the simulator gets to take a knob's new position."""


@dataclass
class Chaos:
    """Everything that a fault needs, and the count of what was done."""

    site: Site
    endpoint: Endpoint
    rng: random.Random
    http: niquests.AsyncSession
    merchant_ids: tuple[str, ...]
    shortcode_ids: tuple[str, ...]
    api_keys: tuple[str, ...]
    """Of the merchants that sell: one with a paybill, one that shares it, and one with a till."""
    operator_key: str
    crons: tuple[str, ...]
    say: Callable[[str], None]
    pace: float = 1.0
    """How long faults last, in proportion to how long they should."""
    counts: Counter[str] = field(default_factory=Counter[str])
    busy: set[str] = field(default_factory=set[str])

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """Turn one of the simulator's knobs: again and again while its Postgres is away.

        A fault that cannot be mended would never end, and one that was never injected must not count.
        """
        async with asyncio.timeout(_PATIENCE):
            while True:
                with suppress(niquests.RequestException, OSError):
                    answer = await self.http.request(
                        method, f"{self.site.daraja}/simulator/control{path}", json=body, timeout=15
                    )
                    if answer.status_code == 200:
                        return answer.json()["data"]
                    if answer.status_code == 404:
                        return None
                    if (answer.status_code or 500) < 500:
                        raise RuntimeError(f"{method} {path}: {answer.text}")
                await asyncio.sleep(0.2)

    async def pushes(self, query: str) -> list[dict[str, Any]]:
        """Pushes as the simulator lists them."""
        found: list[dict[str, Any]] = await self.control("GET", f"/pushes{query}")
        return found

    async def ask(
        self, method: str, path: str, body: Any = None, *, as_operator: bool = False, merchant: int | None = None
    ) -> None:
        """Call the gateway as each merchant or as one of them, or as the operator; whatever it answers is fine."""
        keys = self.api_keys if merchant is None else (self.api_keys[merchant],)
        keys = (self.operator_key,) if as_operator else keys
        await asyncio.gather(*(self._ask(key, method, path, body) for key in keys))

    async def _ask(self, key: str, method: str, path: str, body: Any) -> None:
        headers = {"X-API-Key": key}
        with suppress(niquests.RequestException, OSError):
            await self.http.request(method, self.site.base + path, json=body, headers=headers, timeout=20)

    async def lasts(self, least: float, most: float) -> None:
        """Let the fault be for a while."""
        await asyncio.sleep(self.rng.uniform(least, most) * self.pace)


Fault = Callable[[Chaos], Awaitable[None]]

FAULTS: dict[str, tuple[str, Fault]] = {}
"""By name: the part of the site that it breaks (one fault at a time for each), and the fault."""


def fault(area: str) -> Callable[[Fault], Fault]:
    """Register a fault: it breaks something, lets that be for a while, and mends it."""

    def register(made: Fault) -> Fault:
        FAULTS[made.__name__] = (area, made)
        return made

    return register


async def _replace(chaos: Chaos, process: Process, **environ: str) -> None:
    process.begin(**environ)
    await chaos.site.is_up(process)


@fault("api")
async def api_killed(chaos: Chaos) -> None:
    """SIGKILL of an API process."""
    process = chaos.rng.choice(chaos.site.apis)
    process.kill()
    await chaos.lasts(0.2, 3)
    await _replace(chaos, process)


@fault("worker")
async def worker_killed(chaos: Chaos) -> None:
    """SIGKILL of a worker."""
    process = chaos.rng.choice(chaos.site.workers)
    process.kill()
    await chaos.lasts(0.2, 3)
    await _replace(chaos, process)


@fault("api")
async def api_stopped_dead(chaos: Chaos) -> None:
    """SIGSTOP of an API process: it sleeps through its timeouts and leases and goes on as if nothing were."""
    process = chaos.rng.choice(chaos.site.apis)
    process.pause()
    await chaos.lasts(1, 15)
    process.resume()


@fault("worker")
async def worker_stopped_dead(chaos: Chaos) -> None:
    """SIGSTOP of a worker."""
    process = chaos.rng.choice(chaos.site.workers)
    process.pause()
    await chaos.lasts(1, 15)
    process.resume()


@fault("api")
async def api_replaced(chaos: Chaos) -> None:
    """SIGTERM and a new process, one API after the other, as a deploy does."""
    for process in chaos.site.apis:
        await chaos.site.end(process)
        await _replace(chaos, process)


@fault("worker")
async def worker_replaced(chaos: Chaos) -> None:
    """SIGTERM and a new process, one worker after the other."""
    for process in chaos.site.workers:
        await chaos.site.end(process)
        await _replace(chaos, process)


@fault("api")
async def api_clock_skewed(chaos: Chaos) -> None:
    """An API process whose clock is wrong."""
    process = chaos.rng.choice(chaos.site.apis)
    process.kill()
    await _replace(chaos, process, CHAOS_SKEW=str(chaos.rng.choice((-90, -20, 20, 90))))
    await chaos.lasts(3, 8)
    await chaos.site.end(process)
    await _replace(chaos, process)


@fault("worker")
async def worker_clock_skewed(chaos: Chaos) -> None:
    """A worker whose clock is wrong."""
    process = chaos.rng.choice(chaos.site.workers)
    process.kill()
    await _replace(chaos, process, CHAOS_SKEW=str(chaos.rng.choice((-90, -20, 20, 90))))
    await chaos.lasts(3, 8)
    await chaos.site.end(process)
    await _replace(chaos, process)


@fault("valkey")
async def valkey_killed(chaos: Chaos) -> None:
    """SIGKILL of Valkey, which comes back with its data."""
    await _kill(chaos.site.standalone.valkey.pid)
    await chaos.lasts(0.2, 4)
    await _mend(chaos)


@fault("valkey")
async def valkey_lost(chaos: Chaos) -> None:
    """SIGKILL of Valkey, which comes back empty."""
    await _kill(chaos.site.standalone.valkey.pid)
    chaos.site.forget_valkey()
    await chaos.lasts(0.2, 4)
    await _mend(chaos)


@fault("valkey")
async def valkey_flushed(chaos: Chaos) -> None:
    """FLUSHALL."""
    client = valkey.asyncio.from_url(chaos.site.standalone.valkey.url)  # type: ignore[no-untyped-call]
    with suppress(ValkeyError, OSError):
        await client.flushall()
    await client.aclose()


@fault("valkey")
async def valkey_disk_full(chaos: Chaos) -> None:
    """No room for Valkey's log: it refuses every write."""
    chaos.site.fill_disk()
    await chaos.lasts(2, 6)
    chaos.site.empty_disk()


@fault("postgres")
async def postgres_killed(chaos: Chaos) -> None:
    """SIGKILL of Postgres."""
    await _kill(chaos.site.standalone.postgres.pid)
    await chaos.lasts(0.2, 2)
    await _mend(chaos)


@fault("postgres")
async def postgres_refuses_connections(chaos: Chaos) -> None:
    """Every connection to Postgres is reset, and new ones are refused for ten seconds."""
    chaos.site.to_postgres.refuse()
    chaos.site.to_postgres.cut()
    await chaos.lasts(10, 10)
    await chaos.site.to_postgres.admit()


@fault("postgres")
async def postgres_backends_terminated(chaos: Chaos) -> None:
    """pg_terminate_backend of every connection."""
    with suppress(asyncpg.PostgresError, OSError):
        connection = await asyncpg.connect(chaos.site.standalone.postgres.url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'mpesa-gateway' AND pid <> pg_backend_pid()"
        )
        await connection.close()


@fault("daraja")
async def daraja_slow(chaos: Chaos) -> None:
    """Daraja answers late, at times later than we wait."""
    chaos.site.to_daraja.delay = chaos.rng.uniform(0.5, 9)
    await chaos.lasts(2, 6)
    chaos.site.to_daraja.delay = 0.0


@fault("daraja")
async def daraja_resets(chaos: Chaos) -> None:
    """Daraja takes requests, and the connection is reset before the answer."""
    chaos.site.to_daraja.cut_share = chaos.rng.uniform(0.2, 1)
    chaos.site.to_daraja.cut()
    await chaos.lasts(1, 5)
    chaos.site.to_daraja.cut_share = 0.0
    chaos.site.to_daraja.cut()


@fault("daraja")
async def daraja_away(chaos: Chaos) -> None:
    """Nobody listens at Daraja's address."""
    chaos.site.to_daraja.refuse()
    chaos.site.to_daraja.cut()
    await chaos.lasts(1, 5)
    await chaos.site.to_daraja.admit()


async def _answer_with(chaos: Chaos, code: str) -> None:
    """Let every push meet an error of Daraja's for a while, and every request of another operation too."""
    operations = ("stkpush", chaos.rng.choice(_OPERATIONS))
    for operation in operations:
        await chaos.control("POST", "/faults", {"operation": operation, "fault": code, "times": _MANY})
    await chaos.lasts(2, 5)
    for operation in operations:
        await chaos.control("POST", "/faults", {"operation": operation, "fault": code, "times": 0})


@fault("simulator")
async def daraja_answers_500(chaos: Chaos) -> None:
    """Daraja answers with an internal error, and nobody can tell whether anything was done."""
    await _answer_with(chaos, "500.003.1001")


@fault("simulator")
async def daraja_spike_arrest(chaos: Chaos) -> None:
    """Daraja refuses for its spike arrest."""
    await _answer_with(chaos, "500.003.02")


@fault("simulator")
async def daraja_refuses(chaos: Chaos) -> None:
    """Daraja refuses otherwise: a quota, a bad request, a token that is no longer valid, a busy subscriber."""
    await _answer_with(chaos, chaos.rng.choice(_OTHER_FAULTS))


@fault("simulator")
async def proxies_refuse(chaos: Chaos) -> None:
    """What stands in front of Daraja refuses: spike arrest, quota, a firewall's page, a token that it does not know."""
    await _answer_with(chaos, chaos.rng.choice(_PROXIES))


@fault("simulator")
async def answers_cannot_be_read(chaos: Chaos) -> None:
    """Daraja answers with what no client can read, and nothing was done."""
    await _answer_with(chaos, chaos.rng.choice(_UNREADABLE))


@fault("daraja")
async def chunks_broken(chaos: Chaos) -> None:
    """Daraja takes requests, and answers with a chunk that cannot be read."""
    chaos.site.to_daraja.garble = _BROKEN_CHUNK
    await chaos.lasts(1, 4)
    chaos.site.to_daraja.garble = None
    chaos.site.to_daraja.cut()


async def _habits(chaos: Chaos, **habits: str) -> None:
    """Let operations misbehave for a while."""
    await chaos.control("PATCH", "/habits", habits)
    await chaos.lasts(2, 6)
    await chaos.control("PATCH", "/habits", dict.fromkeys(habits, "normal"))


@fault("spelling")
async def bodies_spelt_otherwise(chaos: Chaos) -> None:
    """Callbacks and results are no clean JSON in UTF-8, or have their numbers as floats."""
    await _habits(chaos, callback=chaos.rng.choice(_SPELLINGS))


@fault("answers")
async def answers_spelt_otherwise(chaos: Chaos) -> None:
    """Tokens, acknowledgements and STK queries are answered oddly, and say something that is not in any table."""
    await _habits(
        chaos,
        oauth=chaos.rng.choice(("expires_huge", "expires_number", "expires_float", "expires_text", "token_line_break")),
        stkack=chaos.rng.choice(("no_merchant_request_id", "code_float", "code_zeros", "code_number")),
        stkquery=chaos.rng.choice(("unknown_code", "code_9999", "other_handle", "processing_200", "does_not_exist")),
    )


@fault("simulator")
async def results_misbehave(chaos: Chaos) -> None:
    """Results of status queries and reversals are lost, late, doubled, early or odd; and Pull answers oddly."""
    habits = {
        "reversal": chaos.rng.choice(RESULT_HABITS),
        "transactionstatus": chaos.rng.choice(RESULT_HABITS),
        "pullquery": chaos.rng.choice(PULL_HABITS),
    }
    await chaos.control("PATCH", "/habits", habits)
    await chaos.lasts(2, 8)
    await chaos.control("PATCH", "/habits", dict.fromkeys(habits, "normal"))


async def _phones(chaos: Chaos, behaviour: str) -> None:
    """Let every phone, and Daraja with it, behave in one way for a while."""
    await chaos.control("PATCH", "/habits", {"stkpush": behaviour})
    await chaos.lasts(2, 5)
    await chaos.control("PATCH", "/habits", {"stkpush": "normal"})


@fault("callbacks")
async def accepted_but_500(chaos: Chaos) -> None:
    """Daraja takes each push and answers with HTTP 500 and a page."""
    await _phones(chaos, "ack_lost")


@fault("callbacks")
async def accepted_but_500_and_never_called_back(chaos: Chaos) -> None:
    """The same, and no callback ever comes: only the statement knows."""
    await _phones(chaos, "vanishes")


@fault("callbacks")
async def callbacks_doubled(chaos: Chaos) -> None:
    """Each callback comes twice."""
    await _phones(chaos, "calls_back_twice")


@fault("callbacks")
async def callbacks_late(chaos: Chaos) -> None:
    """Each callback comes late."""
    await _phones(chaos, "pays_late")


@fault("callbacks")
async def callbacks_before_ack(chaos: Chaos) -> None:
    """Each callback comes before its push is answered."""
    await _phones(chaos, "calls_back_first")


@fault("callbacks")
async def callbacks_lost(chaos: Chaos) -> None:
    """No callback comes."""
    await _phones(chaos, "pays_silently")


@fault("callbacks")
async def callbacks_with_wrong_amount(chaos: Chaos) -> None:
    """Each callback says another amount than was paid."""
    await _phones(chaos, "wrong_amount")


@fault("callbacks")
async def callbacks_reordered(chaos: Chaos) -> None:
    """Callbacks overtake each other, copies of the same one too."""
    await chaos.control("PATCH", "/knobs", {"callback_jitter": 5.0})
    await _phones(chaos, "calls_back_twice")
    await chaos.control("PATCH", "/knobs", {"callback_jitter": 0.0})


@fault("callbacks")
async def callbacks_repeated(chaos: Chaos) -> None:
    """Old callbacks come once more, out of order."""
    pushes = await chaos.pushes("?state=ended&limit=200")
    for push in chaos.rng.sample(pushes, min(len(pushes), 10)):
        for _ in range(chaos.rng.randint(1, 3)):
            await chaos.control("POST", f"/pushes/{push['checkout_request_id']}/callback")


@fault("callbacks")
async def callbacks_forged(chaos: Chaos) -> None:
    """Somebody who knows addresses posts what M-Pesa never said: with wrong signatures, about other payments."""
    pushes = await chaos.pushes("?limit=100")
    for push in chaos.rng.sample(pushes, min(len(pushes), 5)):
        other = chaos.rng.choice(pushes)["checkout_request_id"]
        path = f"/pushes/{push['checkout_request_id']}/forge"
        if other != push["checkout_request_id"]:
            await chaos.control("POST", path, {"about": other})
        await chaos.control("POST", path, {"signature": "Zm9yZ2Vk"})


async def _mood(chaos: Chaos, mood: Mood) -> None:
    chaos.endpoint.mood = mood
    await chaos.lasts(2, 8)
    chaos.endpoint.mood = "well"


@fault("merchant")
async def merchant_down(chaos: Chaos) -> None:
    """Nobody listens at the merchant's endpoint."""
    chaos.endpoint.wire.refuse()
    chaos.endpoint.wire.cut()
    await chaos.lasts(2, 8)
    await chaos.endpoint.wire.admit()


@fault("merchant")
async def merchant_slow(chaos: Chaos) -> None:
    """The merchant's endpoint answers late, sometimes later than we wait."""
    await _mood(chaos, "slow")


@fault("merchant")
async def merchant_answers_500(chaos: Chaos) -> None:
    """The merchant's endpoint answers 500."""
    await _mood(chaos, "500")


@fault("merchant")
async def merchant_redirects(chaos: Chaos) -> None:
    """The merchant's endpoint answers with a redirect."""
    await _mood(chaos, "redirects")


@fault("merchant")
async def merchant_hangs(chaos: Chaos) -> None:
    """The merchant's endpoint stops in the middle of its answer."""
    await _mood(chaos, "hangs")


_SWEEPERS = (
    "payments.sweep",
    "payments.expire",
    "refunds.sweep",
    "webhooks.sweep",
    "callbacks.sweep",
    "kernel.sweep_events",
)


@fault("twice")
async def two_sweepers_at_once(chaos: Chaos) -> None:
    """Every sweeper twice at the same moment, besides the regular ones."""
    await _wake(chaos, (name for name in _SWEEPERS for _ in range(2)))


@fault("twice")
async def two_reconciliations_at_once(chaos: Chaos) -> None:
    """Two reconciliations that the merchant asks for, and two in the queue, at the same moment."""
    await asyncio.gather(
        *(chaos.ask("POST", "/v1/payments/mpesa/reconcile", {}) for _ in range(2)),
        *(
            _wake(chaos, ("reconciliation.reconcile",) * 2, queue="daraja", shortcode_id=shortcode_id)
            for shortcode_id in chaos.shortcode_ids
        ),
    )


@fault("twice")
async def two_crons_at_once(chaos: Chaos) -> None:
    """Every cron fires twice at the same moment, as on two schedulers that do not know of each other."""
    await _wake(chaos, (name for name in chaos.crons for _ in range(2)))


async def _wake(chaos: Chaos, names: Iterable[str], *, queue: str = "maintenance", **kwargs: str) -> None:
    """Put jobs on their queue, all at once; one that Valkey is not there for is left out."""
    from saq.queue.redis import RedisQueue  # noqa: PLC0415 - SAQ takes half a second to import

    client: Any = valkey.asyncio.from_url(chaos.site.standalone.valkey.url)  # type: ignore[no-untyped-call]
    found = RedisQueue(client, name=f"mpesa-{queue}")

    async def wake(name: str) -> None:
        with suppress(ValkeyError, OSError, TimeoutError):
            async with asyncio.timeout(2):
                await found.enqueue(name, timeout=60, heartbeat=20, **kwargs)

    await asyncio.gather(*map(wake, names))
    with suppress(ValkeyError, OSError):
        await client.aclose()


async def _kill(pid: int | None) -> None:
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)


async def _mend(chaos: Chaos) -> None:
    """Start Postgres and Valkey again until both run."""
    servers = (chaos.site.standalone.postgres, chaos.site.standalone.valkey)
    while any(server.pid is None for server in servers):
        for sentence in await asyncio.to_thread(chaos.site.standalone.repair):
            chaos.say(sentence)
        await asyncio.sleep(0.1)


async def rage(
    chaos: Chaos, names: list[str], until: Callable[[], bool], at_once: int = 3, rest: tuple[float, float] = (0, 1.5)
) -> None:
    """Break one thing after the other, ``at_once`` at a time, never two in the same area, until told to stop.

    ``rest`` is how long nothing new is broken after each, at least and at most, in seconds.

    They are dealt from a shuffled deck: each comes once before any comes again, whatever the seed.
    """
    deck: list[str] = []

    def deal() -> str | None:
        if not deck:
            deck.extend(chaos.rng.sample(names, len(names)))
        for name in deck:
            if FAULTS[name][0] not in chaos.busy:
                deck.remove(name)
                return name
        return None

    async def one() -> None:
        while not until():
            name = deal()
            if name is None:
                await asyncio.sleep(0.1)
                continue
            area, made = FAULTS[name]
            chaos.busy.add(area)
            chaos.counts[name] += 1
            chaos.say(name)
            try:
                await made(chaos)
            finally:
                chaos.busy.discard(area)
            await asyncio.sleep(chaos.rng.uniform(*rest) * chaos.pace)

    await asyncio.gather(*(one() for _ in range(at_once)))
