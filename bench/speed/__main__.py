"""``python -m bench.speed``: the gateway's speed compared with its limits and its peers, in rounds that take turns.

Prints a table and writes every figure as JSON. It asserts the correctness of every answer, never the speed.
"""

import asyncio
import contextlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from bench.speed import seed, thin
from bench.speed.announcements import AnnouncementRounds
from bench.speed.c2b import C2bContests
from bench.speed.contests import Contest, Contests, Effort
from bench.speed.deliveries import DeliveryRounds
from bench.speed.lists import explain, explain_transactions
from bench.speed.pages import look
from bench.speed.pgbench import Pgbench
from bench.speed.site import ROOT, Contestant, Site
from bench.speed.work import export, reconcile, start_up, worker_memory
from mpesa_gateway import logs
from mpesa_gateway.config import LogsConfig

LINES = 10_000
"""The lines of the statement."""

OPERATIONS = (
    "lists",
    "pages",
    "limits",
    "create",
    "callback",
    "c2b",
    "announcements",
    "read",
    "deliveries",
    "reconciliation",
    "export",
    "start-up",
)
"""In this order: lists and pages are measured before the rounds add other payments."""


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of each contestant.")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True, help="Seconds of a round.")
@click.option("--clients", type=click.IntRange(1), default=32, show_default=True, help="Connections at a time.")
@click.option("--payments", type=click.IntRange(1), default=1_000_000, show_default=True, help="Stored before.")
@click.option("--only", multiple=True, type=click.Choice(OPERATIONS), help="These operations and no others.")
@click.option("--peers/--no-peers", default=True, help="Include the peers.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Keep the databases here for next time.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
@click.option("--quick", is_flag=True, help="A few seconds of everything, to see that it works: not for its figures.")
def speed(
    rounds: int,
    seconds: float,
    clients: int,
    payments: int,
    only: tuple[str, ...],
    data: Path | None,
    report: Path | None,
    *,
    peers: bool,
    quick: bool,
) -> None:
    """Measure the gateway, its limits and its peers."""
    logs.configure(LogsConfig(format="console", level="error"))
    console = Console()
    if quick:
        rounds, seconds, clients, payments, peers = 1, 0.3, 8, 2000, False
    effort = Effort(rounds, seconds, clients, most=int(1000 + 9000 * (seconds + 1)) if not quick else 3000)
    folder = data or Path(tempfile.mkdtemp(prefix="mpesa-gateway-bench-"))
    try:
        run = Run(folder.resolve(), console, effort, payments, has_peers=peers)
        result = asyncio.run(run.play(only or OPERATIONS))
    finally:
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


class Run:
    """One run: the site, the contests, and the results."""

    def __init__(self, folder: Path, console: Console, effort: Effort, payments: int, *, has_peers: bool) -> None:
        self._site = Site(folder)
        self._console = console
        self._effort = effort
        self._payments = payments
        self._has_peers = has_peers

    async def play(self, operations: tuple[str, ...]) -> dict[str, Any]:
        """Run everything; returns the report."""
        site = self._site
        found: dict[str, Any] = {"run": self._about(), "contests": {}}
        site.start()
        try:
            shop = await self._prepare()
            contests = Contests(site, shop, self._effort)
            if "lists" in operations:
                found["lists"] = await explain(site.database("gateway"), shop)
                self._print_lists("payments", found["lists"])
                found["lists of transactions"] = await explain_transactions(site.database("gateway"), shop)
                self._print_lists("transactions", found["lists of transactions"])
            gateway, thin_app = site.gateway(), site.thin()
            if "pages" in operations:
                base = f"http://127.0.0.1:{gateway.ports[0]}"
                found["pages"] = await look(site.values, site.database("gateway"), shop, base)
                self._print_pages(found["pages"])
            peers = [site.fastapi("fastapi"), site.django("django")] if self._has_peers else []
            made = self._contests(contests, shop, gateway, thin_app, peers, operations)
            if {"c2b", "announcements"} & set(operations):
                c2b = C2bContests(site, shop, self._effort)
                await c2b.prepare()
                made += c2b.contests(gateway) if "c2b" in operations else []
            for contest in made:
                await contest.play(self._effort.rounds, self._say)
                found["contests"][contest.name] = contest.summary()
                self._print(contest)
            await self._work(operations, gateway, shop, found)
            found["memory_mb"] = {one.name: round(one.memory(), 1) for one in (gateway, thin_app, *peers)}
        finally:
            site.stop()
        return found

    async def _work(
        self, operations: tuple[str, ...], gateway: Contestant, shop: seed.Shop, found: dict[str, Any]
    ) -> None:
        """Run the measurements without peers, as often as there are rounds."""
        rounds = range(self._effort.rounds)
        if "announcements" in operations:
            announced = AnnouncementRounds(self._site, shop, gateway, self._effort.seconds)
            found["announcements"] = await announced.measure(self._effort.rounds)
            self._print_work("announcements", found["announcements"])
        if "reconciliation" in operations:
            lines = min(LINES, self._payments)
            found["reconciliation"] = [await reconcile(self._site, shop, gateway, lines) for _ in rounds]
            self._print_work("reconciliation", found["reconciliation"])
        if "export" in operations:
            found["export"] = [await export(shop, gateway) for _ in rounds]
            self._print_work("export", found["export"])
        if "start-up" in operations:
            started = await start_up(lambda: self._site.gateway(1), self._effort.rounds)
            found["start-up"] = started | {"worker_mb": await worker_memory(self._site)}
            self._print_work("start-up", [found["start-up"]])

    def _contests(
        self,
        contests: Contests,
        shop: seed.Shop,
        gateway: Contestant,
        thin_app: Contestant,
        peers: list[Contestant],
        operations: tuple[str, ...],
    ) -> list[Contest]:
        double = Contestant("double", (self._site.double,))
        made: list[Contest] = []
        if "limits" in operations:
            limits = {
                "load generator's ceiling": contests.read(double, ["/"]),
                "bare Litestar route": contests.read(thin_app, ["/bare"]),
            }
            made.append(Contest("limits", limits))
        limit = Pgbench(self._site, shop, self._effort)
        if "create" in operations:
            entrants = {
                "gateway": contests.create(gateway, "/v1/payments"),
                "pgbench, our SQL": limit.create,
                "thin": contests.create(thin_app, "/create"),
            }
            made.append(Contest("create", entrants | {peer.name: contests.create(peer, "/create") for peer in peers}))
            made.append(
                Contest(
                    "create, one client",
                    {
                        "gateway": contests.create(gateway, "/v1/payments", clients=1),
                        "thin": contests.create(thin_app, "/create", clients=1),
                    },
                )
            )
        if "callback" in operations:
            entrants = {
                "gateway": contests.gateway_callback(gateway),
                "pgbench, our SQL": limit.callback,
                "thin": contests.thin_callback(thin_app),
            }
            made.append(Contest("callback", entrants | {peer.name: contests.peer_callback(peer) for peer in peers}))
            made.append(
                Contest(
                    "callback, one client",
                    {
                        "gateway": contests.gateway_callback(gateway, clients=1),
                        "thin": contests.thin_callback(thin_app, clients=1),
                    },
                )
            )
        if "read" in operations:
            reads = {
                "get": ["/v1/payments/{payment_id}"],
                "list, 100": ["/v1/payments?limit=100"],
                "list, 100 of a status": ["/v1/payments?limit=100&status=completed"],
                "list, 100 deep down": ["/v1/payments?limit=100&cursor={cursor}"],
            }
            made += [Contest(name, {"gateway": contests.read_own(gateway, paths)}) for name, paths in reads.items()]
        if "deliveries" in operations:
            rounds = DeliveryRounds(self._site, count=min(5000, self._effort.most))
            for name, each in (("deliveries, 100 in a job", 100), ("deliveries, one in a job", 1)):
                made.append(
                    Contest(
                        name,
                        {
                            "gateway": rounds.deliver(has_dead=True, each=each),
                            "all endpoints healthy": rounds.deliver(has_dead=False, each=each),
                        },
                    )
                )
        return made

    async def _prepare(self) -> seed.Shop:
        """Create and fill the databases, or reuse the ones of an earlier run."""
        site, remembered = self._site, self._site.folder / "shop.json"
        if remembered.exists():
            return seed.Shop(**json.loads(remembered.read_text(encoding="ascii")))
        for name in ("gateway", "thin", "fastapi", "django"):
            await seed.create_database(site.postgres.url, name)
        self._say("opening the shop")
        shop = await seed.open_shop(site.values, f"http://127.0.0.1:{site.double}/hook")
        self._say(f"storing {self._payments:,} payments")
        await seed.seed_gateway(site.database("gateway"), shop.merchant_id, self._payments)
        await seed.seed_plain(site.database("thin"), [(thin.SCHEMA, ()), (thin.SEED, (self._payments,))])
        if self._has_peers:
            for peer in (site.fastapi("fastapi"), site.django("django")):
                await seed.seed_plain(site.database(peer.name), [(seed.PEER_SEED, (self._payments,))])
                peer.stop()
        remembered.write_text(json.dumps(asdict(shop)), encoding="ascii")
        return shop

    def _about(self) -> dict[str, Any]:
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _output(["git", "describe", "--always", "--dirty", "--abbrev=12"]),
            "python": platform.python_version(),
            "machine": _machine(),
            "payments": self._payments,
            **asdict(self._effort),
        }

    def _print_lists(self, title: str, lists: list[dict[str, Any]]) -> None:
        table = Table(title=f"lists of {title}: milliseconds in Postgres")
        names = ("first_ms", "page_1000_ms", *(("total_ms",) if "total_ms" in lists[0] else ()))
        table.add_column("filters")
        for name in names:
            table.add_column(name.removesuffix("_ms").replace("_", " "), justify="right")
        table.add_column("served by")
        for one in lists:
            shown = ("" if one[name] is None else f"{one[name]:.2f}" for name in names)
            table.add_row(one["filters"], *shown, ", ".join(one["indexes"]))
        self._console.print(table)

    def _print_pages(self, pages: list[dict[str, Any]]) -> None:
        table = Table(title="operators' pages, one visitor")
        for name in ("page", "ms", "most ms", "kB"):
            table.add_column(name, justify="left" if name == "page" else "right")
        for one in pages:
            table.add_row(one["page"], *(f"{one[name]:.1f}" for name in ("ms", "most_ms", "kb")))
        self._console.print(table)

    def _print_work(self, name: str, rounds: list[dict[str, Any]]) -> None:
        table = Table(title=name)
        for column in rounds[0]:
            table.add_column(column.replace("_", " "), justify="right")
        for one in rounds:
            table.add_row(*(f"{value:,.1f}" if isinstance(value, float) else f"{value}" for value in one.values()))
        self._console.print(table)

    def _print(self, contest: Contest) -> None:
        table = Table(title=contest.name)
        columns = ("", "median/s", "least", "most", "p50 ms", "p99 ms", "CPU µs", "gateway ÷ it", "least", "most")
        for name in columns:
            table.add_column(name, justify="left" if not name else "right")
        for name, one in contest.summary().items():
            rate, ratio = one["rate"], one.get("gateway_to_it")
            table.add_row(
                name,
                *(f"{rate[which]:,.0f}" for which in ("median", "least", "most")),
                f"{one['p50_ms']:.2f}",
                f"{one['p99_ms']:.2f}",
                " + ".join(f"{cpu:.0f} {part}" for part, cpu in one["cpu_us"].items() if cpu >= 1),
                *([f"{ratio[which]:.2f}" for which in ("median", "least", "most")] if ratio else []),
            )
        self._console.print(table)

    def _say(self, text: str) -> None:
        self._console.print(f"{datetime.now(UTC):%H:%M:%S} {text}", highlight=False)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _machine() -> str:
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    return f"{len(os.sched_getaffinity(0))} cores, {model}"


if __name__ == "__main__":
    speed()
