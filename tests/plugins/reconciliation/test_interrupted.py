"""A run whose process is told to stop ends at once, one whose process dies is given up soon, one at work goes on."""

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


class Place:
    """A gateway whose clock stands, and a shop."""

    def __init__(self, gateway: Gateway, api: Api, clock: SetClock) -> None:
        self.gateway, self.api, self.clock = gateway, api, clock
        self.reconciliation = gateway.services.get(ReconciliationService)

    async def run_and_hang(self) -> "asyncio.Task[bool]":
        """A regular run that waits for long to ask M-Pesa a second time."""
        await self.pull("internal_error")
        shortcode_id = await self.gateway.db.fetchval("SELECT shortcode_id FROM shortcode")
        work = asyncio.create_task(self.reconciliation.run_due(shortcode_id))
        await eventually(lambda: self.gateway.db.fetchval("SELECT run_id FROM reconciliation_run"))
        return work

    async def pull(self, habit: str) -> None:
        """Say how M-Pesa answers when it is asked for a statement."""
        assert (await self.api.call("PATCH", "/simulator/control/habits", {"pullquery": habit})).status == 200

    async def reconcile(self) -> int:
        """Ask for a run by hand; gives the status of the answer."""
        return (await self.api.call("POST", "/v1/payments/mpesa/reconcile", {})).status

    async def runs(self) -> list[tuple[str, str | None]]:
        """Status and error of all runs, the oldest first."""
        rows = await self.gateway.db.fetch("SELECT status, error FROM reconciliation_run ORDER BY run_id")
        return [(row["status"], row["error"]) for row in rows]


@pytest.fixture
async def place(values: dict[str, Any]) -> AsyncGenerator[Place]:
    """Everything that a run needs, and no worker that would run by itself."""
    changes: dict[str, Any] = {"worker": {"in_process": False}, "reconciliation": {"pause": 3600, "wait": 0.2}}
    clock = SetClock(datetime.now(UTC))
    async with (
        running_gateway(values | changes, clock=clock) as (gateway, base),
        shop(gateway, base) as api,
    ):
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        assert (await api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
        yield Place(gateway, api, clock)


async def test_a_job_that_is_handed_back_ends_its_run(place: Place) -> None:
    work = await place.run_and_hang()
    assert await place.reconcile() == 409
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert await place.runs() == [("failed", "the process that ran it was stopped")]
    await place.pull("normal")
    assert await place.reconcile() == 200


async def test_a_manual_run_ends_with_the_gateway(place: Place) -> None:
    await place.pull("internal_error")
    assert (await place.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["status"] == "running"
    await place.reconciliation.stop()
    assert await place.runs() == [("failed", "the process that ran it was stopped")]


async def test_a_run_whose_process_died_is_given_up_after_a_minute(place: Place) -> None:
    credentials = await place.gateway.services.get(Credentials).get(
        await place.gateway.db.fetchval("SELECT merchant_id FROM merchant"), "sandbox"
    )
    now = place.clock.now()
    begin = place.reconciliation._begin  # pyright: ignore[reportPrivateUsage]
    await begin(credentials, "cron", now - timedelta(hours=2), now)
    assert await place.reconcile() == 409
    place.clock.advance(timedelta(seconds=61))
    assert await place.reconcile() == 200
    assert [status for status, _ in await place.runs()] == ["failed", "completed"]


async def test_a_run_at_work_is_not_given_up_however_long_it_takes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_BEAT", 0.05)
    work = await place.run_and_hang()
    for _ in range(3):
        place.clock.advance(timedelta(seconds=50))
        expected = place.clock.now() + timedelta(seconds=60)

        async def is_prolonged(until: datetime = expected) -> bool:
            return bool(await place.gateway.db.fetchval("SELECT lease_until = $1 FROM reconciliation_run", until))

        await eventually(is_prolonged)
        assert await place.reconcile() == 409
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
