"""One soak: the capacity, most of it with faults for long, a short overload, and the books."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import niquests

from bench.chaos.faults import FAULTS, Chaos, inject_faults
from bench.chaos.merchant import Endpoint
from bench.chaos.opening import open_shop, settle
from bench.chaos.queue import stuck_jobs
from bench.chaos.site import Site
from bench.chaos.verify import Findings, verify
from bench.soak.client import Client
from bench.soak.figures import percentile, trend
from bench.soak.load import Load, Phase
from bench.soak.logs import seconds_of
from bench.soak.watch import Watch
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig

_STEP = 1.25
"""Growth of the offered load per step."""

_SLOW = 1.0
"""Seconds for the 95th percentile while the load counts as carried."""

_SPOILT = 0.01
"""The share of tries that may be refused or fail then."""

_BEHIND = 2.0
"""Seconds after the last answer of a step within which its callbacks, events and webhooks must be done."""

_DRAINS_WITHIN = 60.0

_RECOVERED = 3
"""Consecutive seconds without a refusal and with fast answers that end an overload."""

_RECOVERS_WITHIN = 10
"""Seconds within which an overload must end."""

_STUCK = 60.0

_STRANGERS = 4.0
"""Transactions without a payment of ours for each push."""

_MEMORY_SLACK = 6.0
"""MiB by which the memory of a process may grow in the second half."""

_CONNECTION_SLACK = 5.0
"""Growth limit of connections or open files."""

_DUE = """
SELECT (SELECT count(*) FROM delivery WHERE status = 'pending' AND due_at <= now())
    + (SELECT count(*) FROM event_task WHERE done_at IS NULL)
    + (SELECT count(*) FROM callback WHERE verdict = 'waiting')
    + (SELECT count(*) FROM sim_callback WHERE due_at <= now())
"""
"""The overdue work."""

_CALLBACKS = """
SELECT c.last_status AS status, extract(epoch FROM c.answered_at - p.ended_at)::float8 AS seconds
FROM sim_callback c JOIN sim_push p USING (checkout_request_id)
WHERE p.behaviour = 'pays' AND c.answered_at IS NOT NULL AND p.created_at BETWEEN $1 AND $2
"""
"""Callbacks about ordinary phones: the last answer, and its delay after the money moved."""


@dataclass(frozen=True)
class Options:
    """Options of a soak. Times are in seconds; a given ``capacity`` (calls a second) is not measured."""

    seed: int
    seconds: int = 600
    share: float = 0.7
    step: int = 12
    overload: int = 20
    capacity: float | None = None
    settle: int = 600


@dataclass
class Result:
    """The result by phase, and the violations."""

    options: Options
    capacity: float = 0.0
    figures: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    wrong: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return asdict(self)


class Soak:
    """One soak in its own folder. ``say`` gets progress messages."""

    def __init__(self, folder: Path, options: Options, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._options = options
        self._say = say
        self._rng = random.Random(options.seed)  # noqa: S311 - a seed, not a secret
        self._result = Result(options)
        self._findings = Findings()

    async def play(self) -> Result:
        """Run everything."""
        site, endpoint = Site(self._folder, self._rng, is_measured=True), Endpoint(self._rng)
        await endpoint.start()
        try:
            self._say("starting")
            await site.start()
            config = GatewayConfig.load(self._folder / "gateway.toml", {})
            async with Gateway(config).running() as gateway, niquests.AsyncSession(pool_maxsize=50) as http:
                http.trust_env = False
                chaos = await open_shop(gateway, site, endpoint, http, self._rng, self._say)
                await chaos.control("PATCH", "/knobs", {"strangers": _STRANGERS, "seed": self._options.seed})
                client = Client([api.port for api in site.apis], chaos.api_keys[0])
                load = Load(client, self._rng, lambda: bool(chaos.busy))
                await self._phases(site, endpoint, gateway, chaos, load)
                client.close()
        finally:
            await site.stop()
            await endpoint.stop()
        self._result.wrong, self._result.counts = self._findings.wrong, dict(self._findings.counts)
        return self._result

    async def _phases(self, site: Site, endpoint: Endpoint, gateway: Gateway, chaos: Chaos, load: Load) -> None:
        await self._ramp(gateway, load)
        await self._soak(site, chaos, load)
        await self._overload(site, gateway, load)
        self._say("settling")
        start = time.monotonic()
        is_settled = await settle(gateway, chaos, self._options.settle)
        books = await verify(gateway, endpoint, load)
        self._result.figures["books"] = books.figures | {"seconds to settle": round(time.monotonic() - start, 1)}
        for sentence, examples in books.wrong.items():
            self._findings.note(sentence, examples)
        if not is_settled:
            self._findings.note("stuck: not settled in time", [f"{self._options.settle} s"])
        self._findings.note("stuck: a job that stays in the queue", await stuck_jobs(gateway, _STUCK))

    # -- capacity -----------------------------------------------------------------------------------------------------

    async def _ramp(self, gateway: Gateway, load: Load) -> None:
        """Increase the load until answers are slow or work remains; the step before is the capacity.

        Answers alone do not suffice: for some seconds a machine accepts more than it ever completes.
        """
        if self._options.capacity is not None:
            self._result.capacity = self._options.capacity
            await load.flow(self._options.capacity / 4, 3, is_patient=False)
            return
        rate, steps = 20.0, dict[str, Any]()
        # The first calls find cold caches, connections and statements.
        await load.flow(rate, 5, is_patient=False)
        while True:
            self._say(f"ramp: {rate:.0f} calls a second")
            start = time.monotonic()
            phase = await load.flow(rate, self._options.step, is_patient=False)
            took = time.monotonic() - start
            waits = [one for ones in phase.seconds.values() for one in ones]
            spoilt = 1 - phase.served / phase.offered
            slow = percentile(waits, 0.95) if waits else float("inf")
            behind = await _drained(gateway)
            steps[f"{rate:.0f}"] = {
                "served": phase.served,
                "spoilt": round(spoilt, 4),
                "p95": round(slow, 3),
                "behind": round(behind, 1),
            }
            if spoilt > _SPOILT or slow > _SLOW or behind > _BEHIND or phase.served / took < 0.85 * rate:
                break
            self._result.capacity = rate
            rate *= _STEP
        self._result.figures["ramp"] = {"capacity (calls/s)": round(self._result.capacity, 1), "steps": steps}
        await asyncio.sleep(3)

    # -- 70 % for long ------------------------------------------------------------------------------------------------

    async def _soak(self, site: Site, chaos: Chaos, load: Load) -> None:
        """70 % of the capacity with faults: no growth and no loss."""
        rate, seconds = self._result.capacity * self._options.share, self._options.seconds
        watch = Watch(site, max(1.0, seconds / 120))
        until = time.monotonic() + seconds
        # No process is replaced: the memory of a young process shows nothing.
        left_out = {"postgres_refuses_connections"}
        if not site.has_own_disk:
            left_out.add("valkey_disk_full")
        names = sorted(name for name, (area, _) in FAULTS.items() if area not in {"api", "worker"})
        names = [name for name in names if name not in left_out]
        watching = asyncio.create_task(watch.look())
        breaking = asyncio.create_task(
            inject_faults(chaos, names, lambda: time.monotonic() > until, at_once=1, rest=(4, 12))
        )
        phase = await load.flow(rate, seconds, is_patient=True)
        await breaking
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        self._result.faults = dict(sorted(chaos.counts.items()))
        self._result.figures["soak"] = {
            "calls a second": round(rate, 1),
            "seconds": seconds,
            "share of tries that failed or were refused": _share(phase),
            "calls given up": phase.given_up,
            **_answers(phase),
            "while nothing was broken": _waits(phase.in_peace),
            "all the time": _waits(phase.seconds),
        }
        self._result.figures["growth"] = self._growth(watch)
        self._polite(phase)

    def _growth(self, watch: Watch) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, samples in sorted(watch.seen.items()):
            try:
                line = trend(samples)
            except ValueError:
                continue
            found[name] = {
                "median": round(line.median, 1),
                "growth": round(line.growth, 2),
                "per hour": round(line.per_hour, 1),
            }
            if not line.is_flat(_MEMORY_SLACK if "memory" in name else _CONNECTION_SLACK):
                self._findings.note(f"growing: {name}", [f"{line.growth:+.1f} on {line.median:.1f}"])
        return found

    # -- overload -----------------------------------------------------------------------------------------------------

    async def _overload(self, site: Site, gateway: Gateway, load: Load) -> None:
        """Three times the capacity: most calls are refused, callbacks have priority, and recovery is quick."""
        if not self._options.overload:
            return
        await asyncio.sleep(5)
        rate = self._result.capacity * 3
        self._say(f"overload: {rate:.0f} calls a second")
        start = gateway.clock.now()
        counted = time.monotonic()
        phase = await load.flow(rate, self._options.overload, is_patient=False)
        took = time.monotonic() - counted
        ended = gateway.clock.now()
        recovered = await self._recover(load)
        at_gateway = await asyncio.to_thread(
            seconds_of, [api.log for api in site.apis], "/v1/cb/{kind}/{token}", start, ended
        )
        rows = await gateway.db.fetch(_CALLBACKS, start, ended)
        waits = [row["seconds"] for row in rows]
        refused = [row["status"] for row in rows if row["status"] != 200]
        self._result.figures["overload"] = {
            "calls a second": round(rate, 1),
            "seconds": self._options.overload,
            "served a second": round(phase.served / took, 1),
            "share of calls refused": round(phase.refused / phase.offered, 3),
            "unanswered": phase.answers[0],
            **_answers(phase),
            "calls that were served": _waits(phase.seconds),
            "callbacks": len(rows),
            "callbacks not taken": len(refused),
            "callbacks, at the gateway (s)": _percentiles(at_gateway),
            "callbacks, from money moved to taken (s)": _percentiles(waits),
            "seconds until recovered": recovered,
        }
        self._polite(phase)
        self._findings.note("overload: a callback that was not taken", refused)
        if not phase.refused:
            self._findings.note("overload: no call was refused, so there was none", [f"{rate:.0f} calls a second"])
        if phase.answers[0]:
            self._findings.note("overload: unanswered calls", [phase.answers[0]])
        if recovered is None or recovered > _RECOVERS_WITHIN:
            self._findings.note("overload: no recovery within seconds", [recovered])

    async def _recover(self, load: Load) -> float | None:
        """Return the seconds until the usual load is served quickly again, or None."""
        start, in_a_row = time.monotonic(), 0
        for _ in range(30):
            phase = await load.flow(self._result.capacity * 0.5, 1, is_patient=False)
            waits = [one for ones in phase.seconds.values() for one in ones]
            is_well = phase.served == phase.offered and bool(waits) and percentile(waits, 0.95) < _SLOW
            in_a_row = in_a_row + 1 if is_well else 0
            self._say(f"recovering: {in_a_row} seconds well")
            if in_a_row == _RECOVERED:
                return round(max(0.0, time.monotonic() - start - _RECOVERED), 1)
        return None

    def _polite(self, phase: Phase) -> None:
        self._findings.note("unexplained: a refusal without a reason or Retry-After", phase.impolite)


async def _drained(gateway: Gateway) -> float:
    """Return the seconds until no work is overdue."""
    start = time.monotonic()
    while time.monotonic() - start < _DRAINS_WITHIN:
        if not await gateway.db.fetchval(_DUE):
            break
        await asyncio.sleep(0.2)
    return time.monotonic() - start


def _share(phase: Phase) -> float:
    tries = phase.answers.total()
    well = sum(count for status, count in phase.answers.items() if status in {200, 201, 409, 502})
    return round(1 - well / tries, 4) if tries else 0.0


def _answers(phase: Phase) -> dict[str, int]:
    return {f"answers {status}": count for status, count in sorted(phase.answers.items())}


def _waits(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {name: _percentiles(values) for name, values in sorted(seconds.items())}


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"n": len(values)} | {name: round(percentile(values, share), 3) for name, share in shares.items()}
