"""Protects acknowledged callbacks: one answered 200 is in Postgres, even if the process or Postgres is killed then."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import niquests

from mpesa_gateway.app import Gateway
from mpesa_gateway.testing.serving import gateway_values, running_gateway, shop
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from tests.daraja import stk_callback
from tests.journeys.site import books, running_site, until_up
from tests.own_postgres import database_of, running_postgres
from tests.plugins.callbacks.test_callbacks import ASKS

MANY, AT_ONCE, ENOUGH = 400, 40, 60
"""The number of callbacks, the concurrency, and the number of answers before the kill."""


def addresses(gateway: Gateway, merchant_id: str) -> list[str]:
    """Return callback paths of requests unknown to the gateway: each callback waits in the inbox."""
    dispatcher = gateway.services.get(CallbackDispatcher)
    urls = [
        dispatcher.url_for("stk", env="sandbox", merchant_id=merchant_id, subject_id=gateway.ids.new("pay"))
        for _ in range(MANY)
    ]
    return [url[url.index("/v1/cb") :] for url in urls]


class Sender:
    """Sends callbacks concurrently, as Safaricom does, and records the status of each answer."""

    def __init__(self, base: str, paths: list[str]) -> None:
        self.base, self.paths = base, paths
        self.answers: dict[str, int] = {}
        """HTTP status by receipt; 0 without an answer."""

    async def send(self, after: Callable[[], Awaitable[None] | None]) -> None:
        """Send all callbacks and run an action after a number of acknowledgements."""
        waiting = list(enumerate(self.paths))
        has_happened = False

        async def work(session: niquests.AsyncSession) -> None:
            nonlocal has_happened
            while waiting:
                number, path = waiting.pop()
                receipt = f"TKN{number:07}"
                body = json.dumps(stk_callback(f"ws_CO_{number}", receipt=receipt)).encode()
                try:
                    answer = await session.post(
                        self.base + path, data=body, headers={"Content-Type": "application/json"}, timeout=20
                    )
                    self.answers[receipt] = answer.status_code or 0
                except niquests.exceptions.RequestException:
                    self.answers[receipt] = 0
                if not has_happened and len(self.accepted) >= ENOUGH:
                    has_happened = True
                    if (doing := after()) is not None:
                        await doing

        async with niquests.AsyncSession(pool_connections=1, pool_maxsize=AT_ONCE) as session:
            await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))
        assert has_happened

    @property
    def accepted(self) -> set[str]:
        """Return the receipts answered with 200."""
        return {receipt for receipt, status in self.answers.items() if status == 200}


async def stored(gateway: Gateway) -> Counter[str]:
    """Return the receipts in the inbox."""
    rows = await gateway.db.fetch("SELECT callback.body FROM callback")
    return Counter(_receipt(json.loads(row["body"])) for row in rows)


def _receipt(body: Any) -> str:
    items = body["Body"]["stkCallback"]["CallbackMetadata"]["Item"]
    return next(str(item["Value"]) for item in items if item["Name"] == "MpesaReceiptNumber")


async def test_stopped_process_loses_no_acknowledged_callback(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        process = site.start_api(0)
        await until_up(f"{site.bases[0]}/health/ready")
        async with books(site) as gateway:
            merchant = await gateway.merchants.create("Shop", actor="test")
            sender = Sender(site.bases[0], addresses(gateway, merchant.merchant_id))
            await sender.send(lambda: process.send_signal(signal.SIGTERM))
            assert await asyncio.to_thread(process.wait, 20) == 0
            assert set(sender.answers.values()) <= {200, 503, 0}
            found = await stored(gateway)
            assert sender.accepted - set(found) == set()
            assert set(found.values()) == {1}
            assert len(sender.accepted) >= ENOUGH


async def test_killed_postgres_loses_no_acknowledged_callback(valkey_url: str) -> None:
    with running_postgres() as primary, database_of(primary) as url:
        values = gateway_values(url, valkey_url) | {"worker": {"in_process": False}}
        async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
            made = (await api.pay(ASKS, key="a")).data
            sender = Sender(base, addresses(gateway, made["merchant_id"]))

            async def crash() -> None:
                assert primary.pid is not None
                # Immediate shutdown: nothing is flushed, no connection is notified.
                os.kill(primary.pid, signal.SIGQUIT)
                await asyncio.to_thread(primary.stop)
                await asyncio.to_thread(primary.start)

            await sender.send(crash)
            assert set(sender.answers.values()) <= {200, 503}
            assert 503 in sender.answers.values()
            found = await stored(gateway)
            assert sender.accepted - set(found) == set()
            # Rejected callbacks are sent again, and each is then stored once.
            first, again = sender.accepted, Sender(base, sender.paths)
            await again.send(lambda: None)
            assert set(again.answers.values()) == {200}
            found = await stored(gateway)
            assert (set(found), set(found.values())) == (set(again.answers), {1})
            assert first <= set(found)
