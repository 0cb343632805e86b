"""``python -m bench.replica.primary``: what the primary computes for a list and for an export, by whom they are read.

In one process and without HTTP: processor time says the same however busy the machine is with other things.
"""

import asyncio
import shutil
import statistics
import tempfile
from pathlib import Path

import rich_click as click

from bench.replica.site import ReplicaSite
from bench.speed import seed
from bench.speed.site import SETTINGS, computed
from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig, LogsConfig
from mpesa_gateway.db.asking import Asking
from mpesa_gateway.testing.standby import Standby
from mpesa_gateway_payments.listing import export_payments, list_payments
from mpesa_gateway_payments.schemas import PaymentFilters, PaymentQuery
from mpesa_gateway_payments.views import exported, view


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each takes its turn.")
@click.option("--lists", default=200, show_default=True, help="Lists in a turn.")
@click.option("--payments", default=20_000, show_default=True, help="Payments that are stored, and exported.")
def primary(rounds: int, lists: int, payments: int) -> None:
    """Measure what a list and an export cost the primary, with a replica and without."""
    logs.configure(LogsConfig(format="console", level="error"))
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-bench-"))
    try:
        asyncio.run(_measure(folder, rounds, lists, payments))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(folder: Path, rounds: int, lists: int, payments: int) -> None:
    site = ReplicaSite(folder)
    site.start()
    copy = folder / "standby"
    copy.mkdir()
    copy.chmod(0o711)
    standby: Standby | None = None
    try:
        await seed.create_database(site.postgres.url, "gateway")
        shop = await seed.open_shop(site.values, f"http://127.0.0.1:{site.double}/hook")
        await seed.seed_gateway(site.database("gateway"), shop.merchant_id, payments)
        standby = Standby(site.postgres, copy, SETTINGS)
        standby.start()
        site.replica_url = standby.url(site.database("gateway"))
        servers = {"primary": site.postgres.pid or 0, "replica": standby.pid or 0}
        found: dict[str, list[float]] = {}
        async with Gateway(GatewayConfig.from_values(site.values)).running() as gateway:
            for number in range(-1, rounds):
                for name, reads in (("without", gateway.db), ("with", gateway.reads)):
                    for what, times in (("list", lists), ("export", 1)):
                        before = {server: computed(pid) for server, pid in servers.items()}
                        await _read(reads, shop.merchant_id, what, times)
                        for server, pid in servers.items():
                            spent = (computed(pid) - before[server]) / times * 1000
                            if number >= 0:
                                found.setdefault(f"{what} {name} {server}", []).append(spent)
        for measure, each in found.items():
            print(f"{measure:24} {statistics.median(each):8.2f} ms ({min(each):.2f} to {max(each):.2f})", flush=True)
    finally:
        if standby is not None:
            standby.stop()
        site.stop()


async def _read(reads: Asking, merchant_id: str, what: str, times: int) -> None:
    if what == "list":
        for _ in range(times):
            await list_payments(reads, merchant_id, "sandbox", PaymentQuery(limit=100), view)
        return
    async for _ in export_payments(reads, merchant_id, "sandbox", PaymentFilters(), exported):
        pass


if __name__ == "__main__":
    primary()
