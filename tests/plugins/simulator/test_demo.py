"""Protects the evidence of forged callbacks: the demo deletes its own refusals only."""

from io import StringIO
from pathlib import Path
from typing import Any

import niquests
import pytest
from rich.console import Console

from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_simulator.demo import play
from mpesa_gateway_simulator.demo_clients import Phones
from tests.certificates import issue


async def test_demo_between_a_strangers_forgeries_deletes_only_its_own(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values["daraja"] = {"sandbox_certificate": str(issue(tmp_path / "sandbox.cer").path)}
    strangers: list[str] = []
    forge = Phones.forge

    async with running_gateway(values) as (gateway, base):

        async def forge_as_stranger() -> None:
            push = f"ws_CO_3011202616000000{len(strangers)}"
            content = {"Body": {"stkCallback": {"CheckoutRequestID": push, "ResultCode": 0, "ResultDesc": "Paid"}}}
            async with niquests.AsyncSession() as session:
                session.trust_env = False
                answer = await session.post(f"{base}/v1/cb/stk/00000000.00000000", json=content)
            assert answer.status_code == 404
            strangers.append(push)

        async def forge_after_a_stranger(own: Phones, checkout_request_id: str, **forged: Any) -> int:
            if len(strangers) == 1:
                await forge_as_stranger()
            return await forge(own, checkout_request_id, **forged)

        monkeypatch.setattr(Phones, "forge", forge_after_a_stranger)
        await forge_as_stranger()
        await play(gateway, Console(file=StringIO()))
        rows = await gateway.db.fetch("SELECT body FROM refused_callback ORDER BY refused_id")
        assert [push in row["body"] for push, row in zip(strangers, rows, strict=True)] == [True, True]
