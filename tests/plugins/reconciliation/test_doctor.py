"""Protects the doctor's results about a merchant's statements."""

from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.testing.serving import SANDBOX
from mpesa_gateway_reconciliation.doctor import check_reconciliation
from mpesa_gateway_reconciliation.service import ReconciliationService
from tests.conftest import Harness
from tests.identifiers import identifier
from tests.looking import levels, only_merchant, results_of_check
from tests.stored import default_shortcode, go_live

pytestmark = pytest.mark.usefixtures("initiated")


async def results_of(harness: Harness, **examined: Any) -> dict[str, CheckResult]:
    """The doctor's results for the only merchant's statements."""
    merchant = await only_merchant(harness.gateway)
    return await results_of_check(check_reconciliation, harness.gateway, merchant=merchant, **examined)


async def test_doctor_registered_shortcode_with_a_run_is_ok(harness: Harness) -> None:
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    assert levels(await results_of(harness)) == {"reconciliation.registered": "ok"}
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    assert await harness.gateway.services.get(ReconciliationService).run_due(
        await default_shortcode(harness.gateway, merchant_id)
    )
    assert levels(await results_of(harness)) == {"reconciliation.registered": "ok", "reconciliation.runs": "ok"}


async def test_doctor_unregistered_shortcode_is_a_note_and_in_live_a_problem(harness: Harness) -> None:
    found = await results_of(harness)
    assert levels(found) == {"reconciliation.registered": "note"}
    await go_live(harness.gateway)
    found = await results_of(harness, env="live")
    assert levels(found) == {"reconciliation.registered": "problem"}
    assert "pull/register" in (found["reconciliation.registered"].fix or "")


async def test_doctor_without_a_recent_run_is_a_warning(harness: Harness) -> None:
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    later = harness.gateway.clock.now() + timedelta(hours=2)
    assert (await results_of(harness, now=later))["reconciliation.runs"].level == "warning"
    await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})
    await harness.gateway.db.execute(
        "UPDATE reconciliation_run SET window_end = now() - interval '1 hour', "
        "window_start = now() - interval '3 hours'"
    )
    await harness.gateway.db.execute(
        "INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, status, "
        "error, started_at, finished_at, receiver_id) SELECT $1::uuid, merchant_id, env, shortcode, 'cron', "
        "window_start, now(), 'failed', 'M-Pesa is tired', now(), now(), receiver_id FROM reconciliation_run",
        identifier("run", at=harness.gateway.clock.now()),
    )
    found = (await results_of(harness, now=later))["reconciliation.runs"]
    assert (found.level, "M-Pesa is tired" in found.text) == ("warning", True)


async def test_doctor_without_a_nominated_number_reports_nothing(harness: Harness) -> None:
    await harness.api.call("PUT", "/v1/merchant/providers", SANDBOX)
    assert await results_of(harness) == {}
    await harness.api.call("DELETE", "/v1/merchant/providers/mpesa")
    assert await results_of(harness) == {}
