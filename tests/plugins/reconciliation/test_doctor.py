"""What the doctor sees of a merchant's statements: each thing as it should be, and as it should not."""

from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.testing.serving import SANDBOX
from mpesa_gateway_reconciliation.doctor import check_reconciliation
from mpesa_gateway_reconciliation.service import ReconciliationService
from tests.conftest import Town
from tests.identifiers import identifier
from tests.looking import levels, only_merchant, seen_by
from tests.stored import default_shortcode, go_live

pytestmark = pytest.mark.usefixtures("initiated")


async def look(town: Town, **examined: Any) -> dict[str, CheckResult]:
    """What is seen of the one merchant's statements."""
    merchant = await only_merchant(town.gateway)
    return await seen_by(check_reconciliation, town.gateway, merchant=merchant, **examined)


async def test_registered_and_read(town: Town) -> None:
    await town.api.call("POST", "/v1/payments/mpesa/pull/register")
    assert levels(await look(town)) == {"reconciliation.registered": "ok"}
    merchant_id = (await town.api.call("GET", "/v1/merchant/me")).data["id"]
    assert await town.gateway.services.get(ReconciliationService).run_due(
        await default_shortcode(town.gateway, merchant_id)
    )
    assert levels(await look(town)) == {"reconciliation.registered": "ok", "reconciliation.runs": "ok"}


async def test_not_registered(town: Town) -> None:
    found = await look(town)
    assert levels(found) == {"reconciliation.registered": "note"}
    await go_live(town.gateway)
    found = await look(town, env="live")
    assert levels(found) == {"reconciliation.registered": "problem"}
    assert "pull/register" in (found["reconciliation.registered"].fix or "")


async def test_not_read_for_a_while(town: Town) -> None:
    await town.api.call("POST", "/v1/payments/mpesa/pull/register")
    later = town.gateway.clock.now() + timedelta(hours=2)
    assert (await look(town, now=later))["reconciliation.runs"].level == "warning"
    await town.api.call("POST", "/v1/payments/mpesa/reconcile", {})
    await town.gateway.db.execute(
        "UPDATE reconciliation_run SET window_end = now() - interval '1 hour', "
        "window_start = now() - interval '3 hours'"
    )
    await town.gateway.db.execute(
        "INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, status, "
        "error, started_at, finished_at, receiver_id) SELECT $1::uuid, merchant_id, env, shortcode, 'cron', "
        "window_start, now(), 'failed', 'M-Pesa is tired', now(), now(), receiver_id FROM reconciliation_run",
        identifier("run", at=town.gateway.clock.now()),
    )
    found = (await look(town, now=later))["reconciliation.runs"]
    assert (found.level, "M-Pesa is tired" in found.text) == ("warning", True)


async def test_where_nothing_can_be_read_nothing_is_said(town: Town) -> None:
    await town.api.call("PUT", "/v1/merchant/providers", SANDBOX)
    assert await look(town) == {}
    await town.api.call("DELETE", "/v1/merchant/providers/mpesa")
    assert await look(town) == {}
