"""``python -m bench.chaos``: a steady flow of money through a site where everything breaks, and the books afterwards.

Exits with 1 when anything was lost, doubled, invented or left untold. The seed decides which faults come and how long
they last; the machine decides the rest, so a seed is a place to start looking and no recording.
"""

import asyncio
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import niquests
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.chaos.faults import FAULTS, Chaos, rage
from bench.chaos.merchant import Endpoint
from bench.chaos.shoppers import Shoppers
from bench.chaos.site import Site
from bench.chaos.verify import LEFT_TO_A_PERSON, STILL_OPEN, Findings, verify
from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig, LogsConfig
from mpesa_gateway.security.scopes import MERCHANT_SCOPES, Scope
from mpesa_gateway.standalone.sandbox import CREDENTIALS

ROOT = Path(__file__).parents[2]
_ACTOR = "cli:chaos"


@click.command()
@click.option("--seconds", type=click.IntRange(1), default=120, show_default=True, help="How long the faults go on.")
@click.option("--rate", type=click.FloatRange(0.1), default=8.0, show_default=True, help="Payments a second.")
@click.option("--seed", type=int, help="Decides faults and buyers; without it, one is drawn and printed.")
@click.option("--misbehave", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Share of odd phones.")
@click.option("--only", multiple=True, type=click.Choice(sorted(FAULTS)), help="These faults and no others.")
@click.option("--settle", type=click.IntRange(1), default=240, show_default=True, help="Seconds to settle afterwards.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
@click.option("--keep", is_flag=True, help="Keep the folder with all logs and data.")
def chaos(
    seconds: int,
    rate: float,
    seed: int | None,
    misbehave: float,
    only: tuple[str, ...],
    settle: int,
    report: Path | None,
    *,
    keep: bool,
) -> None:
    """Break everything around a gateway at work, and compare its books with what really happened."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    logs.configure(LogsConfig(format="console", level="error"))
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-chaos-"))
    folder.chmod(0o711)
    console.print(f"seed {seed}, {seconds} s, {rate:g} payments a second; logs in {folder}", highlight=False)
    run = Run(folder, console, seed=seed, seconds=seconds, rate=rate, misbehave=misbehave, settle=settle)
    names = sorted(only) or sorted(FAULTS)
    try:
        result = asyncio.run(run.play(names))
    except BaseException:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if result["wrong"]:
        sys.exit(1)


class Run:
    """One run: the site, who buys, who breaks, and the books."""

    def __init__(self, folder: Path, console: Console, **options: Any) -> None:
        self._folder = folder
        self._console = console
        self._options = options
        self._seed: int = options["seed"]
        self._rng = random.Random(self._seed)  # noqa: S311 - a seed is the point
        self._began = time.monotonic()
        self._line = ""

    async def play(self, names: list[str]) -> dict[str, Any]:
        """Run it all; gives the report."""
        site, endpoint = Site(self._folder, self._rng), Endpoint(self._rng)
        await endpoint.start()
        with self._progress() as show:
            self._show = show
            try:
                self._say("starting")
                await site.start()
                if not site.has_own_disk:
                    names = [name for name in names if name != "valkey_disk_full"]
                return await self._break(site, endpoint, names)
            finally:
                await site.stop()
                await endpoint.stop()

    async def _break(self, site: Site, endpoint: Endpoint, names: list[str]) -> dict[str, Any]:
        config = GatewayConfig.load(self._folder / "gateway.toml", {})
        async with Gateway(config).running() as gateway, niquests.AsyncSession(pool_maxsize=200) as http:
            http.trust_env = False
            key, operator_key = await self._open_shop(gateway, site, endpoint, http)
            chaos = Chaos(site, endpoint, self._rng, http, key, operator_key, self._say)
            shop = Shoppers(site.base, key, self._rng, http)
            await chaos.control("PATCH", "/knobs", {"chaos": self._options["misbehave"], "seed": self._seed})
            until = time.monotonic() + self._options["seconds"]
            await asyncio.gather(
                shop.flow(self._options["rate"], lambda: time.monotonic() > until),
                rage(chaos, names, lambda: time.monotonic() > until),
            )
            self._say("all is mended: settling")
            began = time.monotonic()
            is_settled = await self._settle(site, chaos)
            findings = await verify(gateway, site.standalone.postgres.url, config.database.schema, endpoint, shop)
            findings.figures["seconds to settle"] = round(time.monotonic() - began, 1)
            if not is_settled:
                findings.note("not settled in time", [f"{self._options['settle']} s"])
            findings.figures["jobs left active"] = await gateway.jobs.queue.count("active")
            return self._report(findings, chaos, shop)

    async def _open_shop(
        self, gateway: Gateway, site: Site, endpoint: Endpoint, http: niquests.AsyncSession
    ) -> tuple[str, str]:
        """A merchant that is ready to sell; gives its key and the operator's."""
        merchant = await gateway.merchants.create("Chaos", actor=_ACTOR)
        _, key = await gateway.api_keys.create(
            merchant.merchant_id, name="chaos", scopes=MERCHANT_SCOPES, env="sandbox", actor=_ACTOR
        )
        _, operator_key = await gateway.api_keys.create(
            merchant.merchant_id, name="operator", scopes=[Scope.ADMIN], env="sandbox", actor=_ACTOR
        )
        for method, path, body in (
            ("PUT", "/v1/merchant/providers", CREDENTIALS),
            ("PUT", "/v1/merchant/webhook", {"webhook_url": endpoint.url}),
            ("POST", "/v1/payments/mpesa/pull/register", None),
        ):
            answer = await http.request(method, site.base + path, json=body, headers={"X-API-Key": key.reveal()})
            data = answer.json().get("data")
            if data is None:
                raise RuntimeError(f"{method} {path}: {answer.text}")
            endpoint.secret = data.get("webhook_secret", endpoint.secret)
        return key.reveal(), operator_key.reveal()

    async def _settle(self, site: Site, chaos: Chaos) -> bool:
        """Reconcile and wait until nothing is under way any more; gives whether that came in time."""
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            site.standalone.postgres.url, server_settings={"search_path": "mpesa"}
        )
        await chaos.control("PATCH", "/knobs", {"chaos": 0})
        try:
            until = time.monotonic() + self._options["settle"]
            while time.monotonic() < until:
                left = await connection.fetchval(STILL_OPEN)
                self._say(f"settling: {left} left")
                if left == 0:
                    return True
                await chaos.ask("POST", "/v1/payments/mpesa/reconcile", {})
                await self._decide(connection, chaos)
                await asyncio.sleep(2)
        finally:
            await connection.close()
        return False

    @staticmethod
    async def _decide(connection: Any, chaos: Chaos) -> None:
        """Play the person who looks at M-Pesa's portal and ends the refunds that nobody ever answered for."""
        for row in await connection.fetch(LEFT_TO_A_PERSON):
            body = {
                "outcome": "completed" if row["went_back"] else "failed",
                "confirm": row["refund_id"],
                "note": "seen on the portal",
            }
            await chaos.ask("POST", f"/v1/admin/refunds/{row['refund_id']}/resolve", body, as_operator=True)

    def _report(self, findings: Findings, chaos: Chaos, shop: Shoppers) -> dict[str, Any]:
        figures = findings.figures | {"answers " + str(status): count for status, count in sorted(shop.answers.items())}
        table = Table(title=f"seed {self._seed}: {'all is well' if not findings.wrong else 'NOT WELL'}")
        table.add_column("figure")
        table.add_column("", justify="right")
        for name, figure in figures.items():
            table.add_row(name, f"{figure:,}")
        for name, count in sorted(chaos.counts.items()):
            table.add_row(f"fault: {name}", str(count))
        self._console.print(table)
        for sentence, examples in findings.wrong.items():
            self._console.print(f"[red]✗[/] {sentence}: {', '.join(examples)}", highlight=False)
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "python": platform.python_version(),
            "options": self._options,
            "faults": dict(sorted(chaos.counts.items())),
            "figures": figures,
            "wrong": findings.wrong,
        }

    def _progress(self) -> Any:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )

    def _say(self, text: str) -> None:
        if not self._show.tasks:
            self._show.add_task(text, total=None)
        self._show.update(self._show.task_ids[0], description=text)
        if not self._console.is_terminal and text.partition(":")[0] != self._line:
            self._line = text.partition(":")[0]
            self._console.print(f"{time.monotonic() - self._began:6.1f} {text}", highlight=False)


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


if __name__ == "__main__":
    chaos()
