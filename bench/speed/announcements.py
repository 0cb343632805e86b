"""The delay of ``transaction.received``: from the confirmation that Safaricom posts to the webhook at the shop."""

import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Mapping
from typing import Any

from bench.speed.c2b import TOKEN, posted_body
from bench.speed.load import call
from bench.speed.seed import Shop
from bench.speed.site import Contestant, Site

_PER_SECOND = 50
_LONELY = 4_321
"""KES that no open payment asks for."""

_PATIENCE = 150.0
"""Timeout of a webhook in seconds."""

_WARM_UP = 20
"""Confirmations before the measurement, which exclude the worker's start."""


class AnnouncementRounds:
    """Posts confirmations at a fixed rate, with one worker, and waits for their webhooks."""

    def __init__(self, site: Site, shop: Shop, gateway: Contestant, seconds: float) -> None:
        self._site = site
        self._shop = shop
        self._gateway = gateway
        self._count = max(1, int(_PER_SECOND * seconds))

    async def measure(self, rounds: int) -> list[dict[str, Any]]:
        """Return the delays of each round, and once the seconds beside an open payment of the amount."""
        worker = self._site.worker()
        try:
            await self._announce(_WARM_UP)
            delays = [await self._announce(self._count) for _ in range(rounds)]
            beside = await self._announce_beside_a_payment()
        finally:
            worker.stop()
        return [
            {
                "webhooks": len(each),
                "p50_ms": statistics.median(each) * 1000,
                "p99_ms": statistics.quantiles(each, n=100)[98] * 1000 if len(each) > 1 else each[0] * 1000,
                "most_ms": max(each) * 1000,
                "beside_open_s": beside,
            }
            for each in delays
        ]

    async def _announce(self, count: int) -> list[float]:
        """Return the seconds from each confirmation to its webhook."""
        stem, sent, start = secrets.token_hex(3).upper(), dict[str, float](), time.time()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(max(0.0, start + number / _PER_SECOND - time.time()))
                group.create_task(self._confirm(f"A{stem}{number:06}", _LONELY, sent))
        arrived = await self._arrived(sent)
        return [arrived[receipt] - at for receipt, at in sent.items()]

    async def _announce_beside_a_payment(self) -> float:
        stem, sent = secrets.token_hex(3).upper(), dict[str, float]()
        amount = 50_000 + secrets.randbelow(20_000)
        headers = {"X-API-Key": self._shop.key, "Idempotency-Key": f"open-{stem}"}
        body = json.dumps({"amount": amount, "phone": "254708374149"}).encode()
        await call(self._gateway.ports[0], "POST", "/v1/payments", headers, body)
        await self._confirm(f"B{stem}000000", amount, sent)
        arrived = await self._arrived(sent)
        return max(arrived[receipt] - at for receipt, at in sent.items())

    async def _confirm(self, receipt: str, amount: int, sent: dict[str, float]) -> None:
        sent[receipt] = time.time()
        port = self._gateway.ports[len(sent) % len(self._gateway.ports)]
        body = posted_body("c2b", receipt, "WALK IN", amount)
        await call(port, "POST", f"/v1/cb/c2b/{TOKEN}", body=body)

    async def _arrived(self, sent: Mapping[str, float]) -> dict[str, float]:
        """Return the time of each receipt's webhook. Raises RuntimeError if one is missing."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            found: dict[str, float] = json.loads(await call(self._site.double, "GET", "/receipts"))
            if sent.keys() <= found.keys():
                return found
            await asyncio.sleep(0.2)
        raise RuntimeError("a webhook of transaction.received is missing: see worker.log")
