"""Protects runs that are interrupted: a stopped process ends its run, and a dead one's lease expires."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, running_gateway, shop
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_reconciliation import service
from mpesa_gateway_reconciliation.service import ReconciliationService


class PullMerchant:
    """A gateway with a stopped clock, and a shop."""

    def __init__(self, gateway: Gateway, api: Api, clock: SetClock) -> None:
        self.gateway, self.api, self.clock = gateway, api, clock
        self.reconciliation = gateway.services.get(ReconciliationService)

    async def run_and_hang(self) -> "asyncio.Task[bool]":
        """Start a regular run that waits an hour before its second try."""
        await self.pull("internal_error")
        shortcode_id = await self.gateway.db.fetchval("SELECT shortcode_id FROM shortcode")
        work = asyncio.create_task(self.reconciliation.run_due(shortcode_id))
        await eventually(lambda: self.gateway.db.fetchval("SELECT run_id FROM reconciliation_run"))
        return work

    async def pull(self, habit: str) -> None:
        """Set the simulator's answer to Pull queries."""
        assert (await self.api.call("PATCH", "/simulator/control/habits", {"pullquery": habit})).status == 200

    async def reconcile(self) -> int:
        """Start a manual run; returns the HTTP status."""
        return (await self.api.call("POST", "/v1/payments/mpesa/reconcile", {})).status

    async def runs(self) -> list[tuple[str, str | None]]:
        """Status and error of all runs, the oldest first."""
        rows = await self.gateway.db.fetch("SELECT status, error FROM reconciliation_run ORDER BY run_id")
        return [(row["status"], row["error"]) for row in rows]


@pytest.fixture
async def merchant(values: dict[str, Any]) -> AsyncGenerator[PullMerchant]:
    """A shop that is ready for runs, and no worker."""
    changes: dict[str, Any] = {"worker": {"in_process": False}, "reconciliation": {"pause": 3600, "wait": 0.2}}
    clock = SetClock(datetime.now(UTC))
    async with (
        running_gateway(values | changes, clock=clock) as (gateway, base),
        shop(gateway, base) as api,
    ):
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        assert (await api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
        yield PullMerchant(gateway, api, clock)


async def test_run_of_a_cancelled_job_fails(merchant: PullMerchant) -> None:
    work = await merchant.run_and_hang()
    assert await merchant.reconcile() == 409
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert await merchant.runs() == [("failed", "the process that ran it was stopped")]
    await merchant.pull("normal")
    assert await merchant.reconcile() == 200


async def test_run_of_a_stopped_gateway_fails(merchant: PullMerchant) -> None:
    await merchant.pull("internal_error")
    assert (await merchant.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["status"] == "running"
    await merchant.reconciliation.stop()
    assert await merchant.runs() == [("failed", "the process that ran it was stopped")]


async def test_run_of_a_dead_process_fails_after_a_minute(merchant: PullMerchant) -> None:
    credentials = await merchant.gateway.services.get(Credentials).get(
        await merchant.gateway.db.fetchval("SELECT merchant_id FROM merchant"), "sandbox"
    )
    now = merchant.clock.now()
    begin = merchant.reconciliation._begin  # pyright: ignore[reportPrivateUsage] - a run whose process dies after this
    await begin(credentials, "cron", now - timedelta(hours=2), now)
    assert await merchant.reconcile() == 409
    merchant.clock.advance(timedelta(seconds=61))
    assert await merchant.reconcile() == 200
    assert [status for status, _ in await merchant.runs()] == ["failed", "completed"]


async def test_run_in_progress_prolongs_its_lease(merchant: PullMerchant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_BEAT", 0.05)
    work = await merchant.run_and_hang()
    for _ in range(3):
        merchant.clock.advance(timedelta(seconds=50))
        expected = merchant.clock.now() + timedelta(seconds=60)

        async def is_prolonged(until: datetime = expected) -> bool:
            return bool(await merchant.gateway.db.fetchval("SELECT lease_until = $1 FROM reconciliation_run", until))

        await eventually(is_prolonged)
        assert await merchant.reconcile() == 409
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
