"""Protects the doctor's results about webhook endpoints."""

import re
from datetime import timedelta
from typing import Any

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.testing.serving import eventually, running_gateway
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_webhooks.doctor import check_endpoint, check_settings
from tests.conftest import Harness
from tests.identifiers import literal
from tests.looking import levels, only_merchant, results_of_check


async def results_of(harness: Harness, *, env: str = "sandbox", **examined: Any) -> dict[str, CheckResult]:
    """The doctor's results for the only merchant's endpoint."""
    merchant = await only_merchant(harness.gateway)
    found = await results_of_check(check_endpoint, harness.gateway, merchant=merchant, env=env, **examined)
    pages, _ = harness.gateway.port(PageRegistry).every()
    paths = re.compile("|".join(re.sub(r"\{\w+\}", "[a-z]{3}_[0-9a-z]{26}", page.path) for page in pages if page.path))
    for result in found.values():
        if "/v1/" in (result.fix or ""):
            # A person without the API has a page.
            named = re.search(r"/ops/([^ ?,;]+)", result.fix or "")
            assert named is not None, result
            assert paths.fullmatch(named[1]), result
    return found


async def copy_to_live(harness: Harness) -> None:
    """Copy the sandbox endpoint to live."""
    await harness.gateway.db.execute(
        "INSERT INTO webhook_endpoint (endpoint_id, merchant_id, env, url, secret, failures, closed_until, created_at, "  # noqa: S608 - ids that the test chose
        f"updated_at) SELECT {literal('whe')}, merchant_id, 'live', url, secret, failures, closed_until, created_at, "
        "updated_at FROM webhook_endpoint"
    )


async def deliver_one(harness: Harness) -> None:
    """Create and complete a payment, and wait until its webhook is delivered."""
    made = (await harness.api.pay("254711000001", key="a")).data
    await harness.api.settled(made["id"], "completed")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT last_success_at FROM webhook_endpoint"))


async def test_doctor_working_endpoint_is_ok(harness: Harness) -> None:
    assert levels(await results_of(harness)) == {"webhooks.endpoint": "note"}
    await deliver_one(harness)
    assert levels(await results_of(harness)) == {"webhooks.endpoint": "ok"}


async def test_doctor_missing_endpoint_is_a_note_and_in_live_a_warning(harness: Harness) -> None:
    await harness.api.call("DELETE", "/v1/merchant/webhook")
    assert levels(await results_of(harness)) == {"webhooks.endpoint": "note"}
    assert levels(await results_of(harness, env="live")) == {"webhooks.endpoint": "warning"}


async def test_doctor_loopback_endpoint_in_live_is_a_problem(harness: Harness) -> None:
    await copy_to_live(harness)
    found = (await results_of(harness, env="live"))["webhooks.endpoint"]
    assert (found.level, "never called" in found.text) == ("problem", True)


async def test_doctor_failing_endpoint_is_a_warning_and_in_live_a_problem(harness: Harness) -> None:
    await deliver_one(harness)
    harness.receiver.status = 500
    made = (await harness.api.pay("254711000002", key="b")).data
    await harness.api.settled(made["id"], "completed")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT failures FROM webhook_endpoint"))
    found = (await results_of(harness))["webhooks.endpoint"]
    assert (found.level, "HTTP 500" in found.text) == ("warning", True)
    await harness.gateway.db.execute(
        "UPDATE webhook_endpoint SET failures = 7, url = 'https://shop.example.co.ke/hook', "
        "closed_until = now() + interval '1 minute'"
    )
    await copy_to_live(harness)
    found = (await results_of(harness, env="live"))["webhooks.endpoint"]
    assert (found.level, "7 times in a row" in found.text) == ("problem", True)
    assert (await results_of(harness))["webhooks.endpoint"].level == "warning"
    later = harness.gateway.clock.now() + timedelta(minutes=2)
    assert (await results_of(harness, env="live", now=later))["webhooks.endpoint"].level == "warning"


async def test_doctor_dead_deliveries_are_a_warning_and_overdue_ones_a_note(harness: Harness) -> None:
    await deliver_one(harness)
    await harness.gateway.db.execute(
        "UPDATE delivery SET status = 'dead', delivered_at = NULL, last_status = 500, due_at = NULL"
    )
    found = (await results_of(harness))["webhooks.dead"]
    assert (found.level, "replay" in (found.fix or "")) == ("warning", True)
    assert "webhooks.dead" not in await results_of(harness, now=harness.gateway.clock.now() + timedelta(days=8))
    await harness.gateway.db.execute(
        "UPDATE delivery SET status = 'pending', due_at = now(), leased_until = now() + interval '1 hour'"
    )
    later = harness.gateway.clock.now() + timedelta(minutes=1)
    assert (await results_of(harness, now=later))["webhooks.owed"].level == "note"


async def test_doctor_allow_loopback_is_a_note_unless_a_merchant_is_live(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        assert levels(await results_of_check(check_settings, gateway)) == {"webhooks.allow_loopback": "note"}
        # With a live merchant loopback is off, also if the setting allows it.
        assert levels(await results_of_check(check_settings, gateway, is_live=True)) == {
            "webhooks.allow_loopback": "ok"
        }
    async with running_gateway(values | {"webhooks": {"allow_loopback": False}}) as (gateway, _):
        assert levels(await results_of_check(check_settings, gateway, is_live=True)) == {
            "webhooks.allow_loopback": "ok"
        }


async def test_doctor_endpoint_without_events_about_money_is_a_warning_until_they_are_sent(harness: Harness) -> None:
    await harness.api.call("PUT", "/v1/merchant/webhook/event-types", {"event_types": ["payment.failed"]})
    await deliver_none(harness)
    found = await results_of(harness)
    assert (found["webhooks.event_types"].level, found["webhooks.cancelled"].level) == ("warning", "warning")
    assert "payment.completed, payment.mismatched, payment.reversed" in found["webhooks.event_types"].text
    await harness.api.call("PUT", "/v1/merchant/webhook/event-types", {"event_types": None})
    found = await results_of(harness)
    assert ("webhooks.event_types" in found, found["webhooks.cancelled"].text[:2]) == (False, "1 ")
    since = (harness.gateway.clock.now() - timedelta(hours=1)).isoformat()
    replayed = await harness.api.call("POST", "/v1/webhooks/replay", {"since": since, "status": "cancelled"})
    assert replayed.data["replayed"] == 1
    await harness.receiver.wait_for(1, kind="payment.completed")
    assert "webhooks.cancelled" not in await results_of(harness)


async def deliver_none(harness: Harness) -> None:
    """Complete a payment whose webhook is cancelled."""
    await harness.api.settled((await harness.api.pay("254711000001", key="unheard")).data["id"], "completed")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT true FROM delivery WHERE status = 'cancelled'"))
