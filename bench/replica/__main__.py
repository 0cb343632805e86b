"""``python -m bench.replica``: lists, exports and creates, with a replica for reads and without, taking turns.

Everything shares one machine, so a replica adds no processor: what counts is how much the primary computes.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console

from bench.replica.site import ReplicaSite
from bench.speed import seed
from bench.speed.load import request, write_requests
from bench.speed.site import SETTINGS, Contestant, computed, load
from bench.speed.work import export
from mpesa_gateway import logs
from mpesa_gateway.config import LogsConfig
from mpesa_gateway.testing.standby import Standby

_LISTS = ("?limit=20", "?limit=100", "?status=completed&limit=50", "?min_amount=9000&limit=20", "?phone=254700000001")
"""What readers ask for, in turn."""

_READERS, _CREATORS = 8, 16

_WITHOUT, _WITH = "without", "with"


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each takes its turn.")
@click.option("--seconds", default=3.0, show_default=True, help="How long lists, and creates, are measured in a turn.")
@click.option("--payments", default=200_000, show_default=True, help="Payments that are stored before.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
def replica(rounds: int, seconds: float, payments: int, report: Path | None) -> None:
    """Measure what a replica for reads takes off the primary."""
    logs.configure(LogsConfig(format="console", level="error"))
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-bench-"))
    try:
        result = asyncio.run(Run(folder, Console(), rounds, seconds, payments).play())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


class Run:
    """One run, and what came out."""

    def __init__(self, folder: Path, console: Console, rounds: int, seconds: float, payments: int) -> None:
        self._site = ReplicaSite(folder)
        self._console = console
        self._rounds = rounds
        self._seconds = seconds
        self._payments = payments
        self._reads, self._creates = folder / "reads", folder / "creates"

    async def play(self) -> dict[str, Any]:
        """Run it all; gives the figures of every turn."""
        site = self._site
        site.start()
        standby_folder = site.folder / "standby"
        standby_folder.mkdir(mode=0o711)
        standby: Standby | None = None
        try:
            await seed.create_database(site.postgres.url, "gateway")
            self._shop = await seed.open_shop(site.values, f"http://127.0.0.1:{site.double}/hook")
            self._console.print(f"storing {self._payments:,} payments")
            await seed.seed_gateway(site.database("gateway"), self._shop.merchant_id, self._payments)
            standby = Standby(site.postgres, standby_folder, SETTINGS)
            standby.start()
            contestants = {_WITHOUT: site.gateway()}
            site.replica_url = standby.url(site.database("gateway"))
            contestants[_WITH] = site.gateway()
            key = {"X-API-Key": self._shop.key}
            write_requests(self._reads, [request("GET", f"/v1/payments{query}", key) for query in _LISTS])
            found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
            for number in range(-1, self._rounds):
                names = list(contestants)[:: 1 if number % 2 else -1]
                for name in names:
                    turn = await self._turn(contestants[name], standby)
                    if number >= 0:
                        found[name].append(turn)
                        self._console.print(f"{number + 1} {name}: {turn['creates_a_second']:.0f} creates a second")
            print_table(self._console, found)
            return {"payments": self._payments, "seconds": self._seconds, "turns": found}
        finally:
            if standby is not None:
                standby.stop()
            site.stop()

    async def _turn(self, gateway: Contestant, standby: Standby) -> dict[str, float]:
        """Lists alone, an export alone, and creates beside lists and exports that do not end."""
        found: dict[str, float] = {}
        async with self._computing(found, "lists", standby):
            lists = await self._list(gateway)
        found |= {"lists_a_second": lists["rate"], "list_p50_ms": lists["p50_ms"]}
        answered = sum(lists["statuses"].values())
        for server in ("primary", "replica"):
            found[f"lists_{server}_us"] = found[f"lists_{server}"] / answered * 1e6
        async with self._computing(found, "export", standby):
            found["export_seconds"] = (await export(self._shop, gateway))["seconds"]
        stem = secrets.token_hex(6)
        body = json.dumps({"amount": 500, "phone": "254708374149"}).encode()
        write_requests(
            self._creates,
            (
                request("POST", "/v1/payments", {"X-API-Key": self._shop.key, "Idempotency-Key": f"{stem}-{n}"}, body)
                for n in range(int(2000 * (self._seconds + 1)))
            ),
        )
        exporting = asyncio.create_task(self._keep_exporting(gateway))
        try:
            async with self._computing(found, "mixed", standby):
                creates, lists = await asyncio.gather(
                    load(self._creates, gateway.ports, clients=_CREATORS, seconds=self._seconds, expect=[201]),
                    self._list(gateway),
                )
        finally:
            exporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await exporting
        return found | {
            "creates_a_second": creates["rate"],
            "create_p50_ms": creates["p50_ms"],
            "create_p99_ms": creates["p99_ms"],
            "lists_beside": lists["rate"],
        }

    async def _list(self, gateway: Contestant) -> dict[str, Any]:
        return await load(
            self._reads, gateway.ports, clients=_READERS, seconds=self._seconds, expect=[200], repeat=True
        )

    async def _keep_exporting(self, gateway: Contestant) -> None:
        for _ in itertools.count():
            await export(self._shop, gateway)

    @asynccontextmanager
    async def _computing(self, found: dict[str, float], name: str, standby: Standby) -> AsyncGenerator[None]:
        """Note how many seconds each server computes in the block, and for how long that was."""
        before, began = self._computed(standby), time.perf_counter()
        yield
        after, lasted = self._computed(standby), time.perf_counter() - began
        for server, seconds in after.items():
            found[f"{name}_{server}"] = seconds - before[server]
            found[f"{name}_{server}_share"] = (seconds - before[server]) / lasted

    def _computed(self, standby: Standby) -> dict[str, float]:
        return {"primary": self._site.cpu()["postgres"], "replica": computed(standby.pid or 0)}


def print_table(console: Console, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians of both, and the ratio of each turn's pair."""
    for measure in found[_WITHOUT][0]:
        without, with_ = ([turn[measure] for turn in found[name]] for name in (_WITHOUT, _WITH))
        console.print(
            f"{measure:24} without {statistics.median(without):10.3f}  with {statistics.median(with_):10.3f}"
            f"  with ÷ without {_ratios(without, with_)}"
        )


def _ratios(without: Sequence[float], with_: Sequence[float]) -> str:
    ratios = [mine / theirs for theirs, mine in zip(without, with_, strict=True) if theirs]
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    replica()
