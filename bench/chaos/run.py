"""One run: the site, buyers, faults, checks during the run, and the books afterwards."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import niquests

from bench.chaos.faults import FAULTS, inject_faults
from bench.chaos.merchant import Endpoint
from bench.chaos.opening import open_shop, settle
from bench.chaos.queue import stuck_jobs
from bench.chaos.shoppers import Shoppers
from bench.chaos.site import Site
from bench.chaos.verify import ALWAYS, Findings, run_checks, verify
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import UNREACHABLE

_AWAY: tuple[type[BaseException], ...] = (*UNREACHABLE, asyncpg.PostgresError)
"""Errors of Postgres queries while it is broken."""

_LOOKS = 5.0
"""Seconds between two checks of the books during faults."""

_STUCK = 60.0
"""Seconds that a job may run once all has settled: more than a dead worker's heartbeat and two sweeps."""


@dataclass(frozen=True)
class Options:
    """Options of a run. Times are in seconds, ``rate`` in payments a second."""

    seed: int
    seconds: int = 120
    rate: float = 8.0
    misbehave: float = 0.4
    strangers: float = 4.0
    settle: int = 240
    at_once: int = 3
    pace: float = 1.0
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The result of a run. ``left_out`` are faults that could not be injected here, ``wrong`` are violations."""

    options: Options
    faults: dict[str, int]
    left_out: list[str]
    figures: dict[str, float]
    counts: dict[str, int]
    wrong: dict[str, list[str]]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return asdict(self)


class Run:
    """One run in its own folder. ``say`` gets progress messages."""

    def __init__(self, folder: Path, options: Options, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._options = options
        self._say = say
        self._rng = random.Random(options.seed)  # noqa: S311 - a seed, not a secret

    async def play(self) -> Result:
        """Run everything."""
        site, endpoint = Site(self._folder, self._rng, self._options.pace), Endpoint(self._rng)
        await endpoint.start()
        try:
            self._say("starting")
            await site.start()
            names = sorted(self._options.only or FAULTS)
            # Only root may mount the small disk that is filled.
            left_out = [name for name in names if name == "valkey_disk_full" and not site.has_own_disk]
            return await self._break(site, endpoint, [name for name in names if name not in left_out], left_out)
        finally:
            await site.stop()
            await endpoint.stop()

    async def _break(self, site: Site, endpoint: Endpoint, names: list[str], left_out: list[str]) -> Result:
        config = GatewayConfig.load(self._folder / "gateway.toml", {})
        async with Gateway(config).running() as gateway, niquests.AsyncSession(pool_maxsize=200) as http:
            http.trust_env = False
            chaos = await open_shop(gateway, site, endpoint, http, self._rng, self._say)
            chaos.pace = self._options.pace
            shop = Shoppers(site.base, chaos.api_keys, self._rng, http, pace=self._options.pace)
            knobs = {"chaos": self._options.misbehave, "strangers": self._options.strangers, "seed": self._options.seed}
            await chaos.control("PATCH", "/knobs", knobs)
            until = time.monotonic() + self._options.seconds

            def is_over() -> bool:
                return time.monotonic() > until

            meanwhile = Findings()
            watching = asyncio.create_task(self._watch(gateway, meanwhile))
            await asyncio.gather(
                shop.flow(self._options.rate, is_over), inject_faults(chaos, names, is_over, self._options.at_once)
            )
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._say("all faults undone: settling")
            began = time.monotonic()
            is_settled = await settle(gateway, chaos, self._options.settle)
            findings = await verify(gateway, endpoint, shop)
            findings.figures["seconds to settle"] = round(time.monotonic() - began, 1)
            if not is_settled:
                findings.note("stuck: not settled in time", [f"{self._options.settle} s"])
            self._say("checking for stuck jobs")
            findings.note("stuck: a job that stays in the queue", await stuck_jobs(gateway, _STUCK))
            findings.note("unexplained: a process that did not stop cleanly", site.ended_badly)
            for sentence, examples in meanwhile.wrong.items():
                findings.note(f"{sentence}, while it went on", examples)
            findings.figures |= meanwhile.figures | {"processes that ended by themselves": site.revived}
            findings.figures |= {f"answers {status}": count for status, count in sorted(shop.answers.items())}
            return Result(
                self._options,
                dict(sorted(chaos.counts.items())),
                left_out,
                findings.figures,
                dict(findings.counts),
                findings.wrong,
            )

    @staticmethod
    async def _watch(gateway: Gateway, findings: Findings) -> None:
        """Check the permanent invariants repeatedly, whenever Postgres is available."""
        findings.figures["checks of the books during faults"] = 0
        while True:
            await asyncio.sleep(_LOOKS)
            try:
                # One snapshot for all figures, so that a difference is real.
                async with gateway.db.transaction():
                    await gateway.db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    await run_checks(gateway, ALWAYS, findings)
            except _AWAY:
                continue
            findings.figures["checks of the books during faults"] += 1
