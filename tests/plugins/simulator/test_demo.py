"""Protects the evidence of forged callbacks: the demo deletes its own refusals only."""

import asyncio
from io import StringIO
from pathlib import Path
from typing import Any

import niquests
from rich.console import Console

from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_simulator.demo import play
from tests.certificates import issue


async def test_demo_between_a_strangers_forgeries_deletes_only_its_own(values: dict[str, Any], tmp_path: Path) -> None:
    values["daraja"] = {"sandbox_certificate": str(issue(tmp_path / "sandbox.cer").path)}
    sent = 0

    async def forge(base: str) -> None:
        nonlocal sent
        async with niquests.AsyncSession() as session:
            session.trust_env = False
            while True:
                push = f"ws_CO_3011202616000{sent:05}"
                content = {"Body": {"stkCallback": {"CheckoutRequestID": push, "ResultCode": 0, "ResultDesc": "Paid"}}}
                answer = await session.post(f"{base}/v1/cb/stk/00000000.00000000", json=content)
                assert answer.status_code == 404
                sent += 1
                await asyncio.sleep(0.06)

    async with running_gateway(values) as (gateway, base):
        forging = asyncio.create_task(forge(base))
        shown = StringIO()
        try:
            await play(gateway, Console(file=shown))
        finally:
            forging.cancel()
        rows = await gateway.db.fetch("SELECT body FROM refused_callback")
        assert len(rows) == sent > 10, shown.getvalue()
        assert all("ws_CO_3011202616000" in row["body"] for row in rows)
