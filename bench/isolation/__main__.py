"""``python -m bench.isolation``: webhooks and expiry while STK query and Pull take questions and never answer.

Measures a new payment's webhook, from its callback on, first idle and then with everything hanging: what counts is the
ratio within one run.
"""

import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from bench.isolation.daraja import HangingDaraja, playing
from bench.speed.load import call
from bench.speed.seed import create_database
from bench.speed.site import Site
from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig, LogsConfig
from mpesa_gateway.testing.serving import INITIATED, SANDBOX, eventually

_ACTOR = "cli:bench"
MERCHANTS, DUE, EXPIRING = 25, 60, 200
"""Merchants to reconcile, payments to ask about, and payments whose time ends, while everything hangs."""

_LATE_P99, _FLOOR = 1.0, 0.1
"""Seconds: what 99 in 100 webhooks may take, and what half of them may take on a quick machine."""

_PATIENCE = 60.0


@dataclass(frozen=True)
class Took:
    """Milliseconds that webhooks took."""

    webhooks: int
    p50_ms: float
    p99_ms: float
    most_ms: float


class IsolationSite(Site):
    """The servers and the gateway, with a Daraja of this process."""

    def start(self) -> None:
        """Start Postgres and Valkey."""
        self.postgres.start()
        self.valkey.start()

    @property
    def values(self) -> dict[str, Any]:
        """The defaults, and no question by itself before the hour is over."""
        return super().values | {"payments": {"query_after": [3600], "expire_after": 7200}}


class Run:
    """One run."""

    def __init__(self, site: IsolationSite, daraja: HangingDaraja, webhooks: int) -> None:
        self._site = site
        self._daraja = daraja
        self._webhooks = webhooks
        self._payments = 0

    async def play(self) -> dict[str, Any]:
        """Run it; gives the figures. Raises TimeoutError when something does not happen at all."""
        async with Gateway(GatewayConfig.from_values(self._site.values)).running() as gateway:
            keys = [await self._merchant(gateway) for _ in range(MERCHANTS + 1)]
            api, worker = await asyncio.to_thread(self._site.gateway, 1), await asyncio.to_thread(self._site.worker)
            port = api.ports[0]
            try:
                for number, key in enumerate(keys):
                    await _store(port, key, self._daraja.port, may_pull=number > 0)
                await self._measure(port, keys[0], 10)
                idle = await self._measure(port, keys[0], self._webhooks)
                late = asyncio.create_task(self._hang(gateway, port, keys))
                await self._until_all_hangs()
                hanging = await self._measure(port, keys[0], self._webhooks)
                open_questions = dict(self._daraja.hanging)
                expired_late = await late
            finally:
                await asyncio.to_thread(worker.stop)
                await asyncio.to_thread(api.stop)
        return {
            "load": os.getloadavg(),
            "idle": asdict(idle),
            "hanging": asdict(hanging),
            "ratio_p50": hanging.p50_ms / idle.p50_ms,
            "questions_open": open_questions,
            "expired": EXPIRING,
            "expired_late_at_most_seconds": expired_late,
        }

    async def _merchant(self, gateway: Gateway) -> str:
        merchant = await gateway.merchants.create("Bench", actor=_ACTOR)
        _, secret = await gateway.api_keys.create(
            merchant.merchant_id, name="bench", scopes=gateway.scopes.of_merchants, env="sandbox", actor=_ACTOR
        )
        return secret.reveal()

    async def _pay(self, port: int, key: str) -> tuple[str, str]:
        """A payment whose prompt is out: its id, and its CheckoutRequestID."""
        self._payments += 1
        headers = {"X-API-Key": key, "Idempotency-Key": f"bench-{self._payments}"}
        said = await call(port, "POST", "/v1/payments", headers, b'{"amount": 500, "phone": "254708374149"}')
        made = json.loads(said)["data"]
        return made["id"], made["provider_ref"]

    async def _measure(self, port: int, key: str, count: int) -> Took:
        took: list[float] = []
        for _ in range(count):
            payment_id, handle = await self._pay(port, key)
            items = {"Amount": 500, "MpesaReceiptNumber": f"TKN{self._payments:07}", "PhoneNumber": 254708374149}
            callback = {
                "MerchantRequestID": "m",
                "CheckoutRequestID": handle,
                "ResultCode": 0,
                "ResultDesc": "ok",
                "CallbackMetadata": {"Item": [{"Name": name, "Value": value} for name, value in items.items()]},
            }
            path = "/" + self._daraja.pushed[handle].split("/", 3)[3]
            began = time.perf_counter()
            await call(port, "POST", path, {}, json.dumps({"Body": {"stkCallback": callback}}).encode())
            took.append((await self._daraja.webhook(payment_id, _PATIENCE) - began) * 1000)
        ordered = sorted(took)
        return Took(count, statistics.median(ordered), ordered[max(0, -(-count * 99 // 100) - 1)], ordered[-1])

    async def _hang(self, gateway: Gateway, port: int, keys: list[str]) -> float:
        """Make everything due, with nothing answered; gives by how many seconds the last payment expired late."""
        due = [await self._pay(port, keys[1 + number % MERCHANTS]) for number in range(DUE)]
        ending = [await self._pay(port, keys[1 + number % MERCHANTS]) for number in range(EXPIRING)]
        self._daraja.hangs = True
        due_ids, ending_ids = [one for one, _ in due], [one for one, _ in ending]
        await gateway.db.execute("UPDATE payment SET due_at = now() WHERE payment_id = ANY($1)", due_ids)
        await gateway.db.execute(
            "UPDATE payment SET due_at = now(), expires_at = now() + interval '5 seconds' WHERE payment_id = ANY($1)",
            ending_ids,
        )
        await gateway.jobs.enqueue("payments.sweep")
        await gateway.jobs.enqueue("reconciliation.reconcile_all")
        ended = "SELECT count(*) = 0 FROM payment WHERE payment_id = ANY($1) AND status = 'pending'"
        await eventually(lambda: gateway.db.fetchval(ended, ending_ids), _PATIENCE * 2)
        late = await gateway.db.fetchval(
            "SELECT max(updated_at - expires_at) FROM payment WHERE payment_id = ANY($1)", ending_ids
        )
        return float(late.total_seconds())

    async def _until_all_hangs(self) -> None:
        async def all_hang() -> bool:
            return all(self._daraja.hanging.values())

        await eventually(all_hang, _PATIENCE)


async def _store(port: int, key: str, hook: int, *, may_pull: bool) -> None:
    headers = {"X-API-Key": key}
    body = json.dumps(INITIATED if may_pull else SANDBOX).encode()
    await call(port, "PUT", "/v1/merchant/providers", headers, body)
    where = json.dumps({"webhook_url": f"http://127.0.0.1:{hook}/hook"}).encode()
    await call(port, "PUT", "/v1/merchant/webhook", headers, where)


@click.command()
@click.option("--webhooks", type=click.IntRange(1), default=200, show_default=True, help="Measured in each half.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
@click.option("--quick", is_flag=True, help="A few of everything, to see that it works: not for its figures.")
def isolation(webhooks: int, report: Path | None, *, quick: bool) -> None:
    """Measure webhooks and expiry while M-Pesa takes questions and never answers."""
    logs.configure(LogsConfig(format="console", level="error"))
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-bench-"))
    try:
        found = asyncio.run(_play(folder, 10 if quick else webhooks))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(json.dumps(found, indent=2))
    if report is not None:
        report.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if not quick:
        _judge(found)


async def _play(folder: Path, webhooks: int) -> dict[str, Any]:
    async with playing() as daraja:
        site = IsolationSite(folder)
        site.double = daraja.port
        await asyncio.to_thread(site.start)
        try:
            await create_database(site.postgres.url, "gateway")
            return await Run(site, daraja, webhooks).play()
        finally:
            with suppress(Exception):
                await asyncio.to_thread(site.stop)


def _judge(found: dict[str, Any]) -> None:
    idle, hanging = found["idle"], found["hanging"]
    most = max(2 * idle["p50_ms"], _FLOOR * 1000)
    if hanging["p99_ms"] >= _LATE_P99 * 1000 or hanging["p50_ms"] > most:
        raise click.ClickException(
            f"webhooks are delayed: p99 {hanging['p99_ms']:.0f} ms of {_LATE_P99 * 1000:.0f}, "
            f"half of them {hanging['p50_ms']:.0f} ms of {most:.0f}"
        )


if __name__ == "__main__":
    isolation()
