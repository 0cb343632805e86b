"""What the doctor sees of webhooks: each thing as it should be, and as it should not."""

from datetime import timedelta
from typing import Any

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.testing.serving import eventually, running_gateway
from mpesa_gateway_webhooks.doctor import check_endpoint, check_settings
from tests.conftest import Town
from tests.identifiers import literal
from tests.looking import levels, only_merchant, seen_by


async def look(town: Town, *, env: str = "sandbox", **examined: Any) -> dict[str, CheckResult]:
    """What is seen of the one merchant's endpoint."""
    merchant = await only_merchant(town.gateway)
    return await seen_by(check_endpoint, town.gateway, merchant=merchant, env=env, **examined)


async def copy_to_live(town: Town) -> None:
    """A live endpoint, and live deliveries, like those of the sandbox."""
    await town.gateway.db.execute(
        "INSERT INTO webhook_endpoint (endpoint_id, merchant_id, env, url, secret, failures, closed_until, created_at, "  # noqa: S608 - ids that the test chose
        f"updated_at) SELECT {literal('whe')}, merchant_id, 'live', url, secret, failures, closed_until, created_at, "
        "updated_at FROM webhook_endpoint"
    )


async def taken(town: Town) -> None:
    """A payment whose webhook was taken."""
    made = (await town.api.pay("254711000001", key="a")).data
    await town.api.settled(made["id"], "completed")
    await eventually(lambda: town.gateway.db.fetchval("SELECT last_success_at FROM webhook_endpoint"))


async def test_one_that_works(town: Town) -> None:
    assert levels(await look(town)) == {"webhooks.endpoint": "note"}
    await taken(town)
    assert levels(await look(town)) == {"webhooks.endpoint": "ok"}


async def test_none_set(town: Town) -> None:
    await town.api.call("DELETE", "/v1/merchant/webhook")
    assert levels(await look(town)) == {"webhooks.endpoint": "note"}
    assert levels(await look(town, env="live")) == {"webhooks.endpoint": "warning"}


async def test_one_from_the_sandbox_that_a_live_merchant_may_not_have(town: Town) -> None:
    await copy_to_live(town)
    found = (await look(town, env="live"))["webhooks.endpoint"]
    assert (found.level, "never called" in found.text) == ("problem", True)


async def test_one_that_fails(town: Town) -> None:
    await taken(town)
    town.receiver.status = 500
    made = (await town.api.pay("254711000002", key="b")).data
    await town.api.settled(made["id"], "completed")
    await eventually(lambda: town.gateway.db.fetchval("SELECT failures FROM webhook_endpoint"))
    found = (await look(town))["webhooks.endpoint"]
    assert (found.level, "HTTP 500" in found.text) == ("warning", True)
    await town.gateway.db.execute(
        "UPDATE webhook_endpoint SET failures = 7, url = 'https://shop.example.co.ke/hook', "
        "closed_until = now() + interval '1 minute'"
    )
    await copy_to_live(town)
    found = (await look(town, env="live"))["webhooks.endpoint"]
    assert (found.level, "7 times in a row" in found.text) == ("problem", True)
    assert (await look(town))["webhooks.endpoint"].level == "warning"
    later = town.gateway.clock.now() + timedelta(minutes=2)
    assert (await look(town, env="live", now=later))["webhooks.endpoint"].level == "warning"


async def test_what_was_given_up_and_what_is_owed(town: Town) -> None:
    await taken(town)
    await town.gateway.db.execute(
        "UPDATE delivery SET status = 'dead', delivered_at = NULL, last_status = 500, due_at = NULL"
    )
    found = (await look(town))["webhooks.dead"]
    assert (found.level, "replay" in (found.fix or "")) == ("warning", True)
    assert "webhooks.dead" not in await look(town, now=town.gateway.clock.now() + timedelta(days=8))
    await town.gateway.db.execute(
        "UPDATE delivery SET status = 'pending', due_at = now(), leased_until = now() + interval '1 hour'"
    )
    later = town.gateway.clock.now() + timedelta(minutes=1)
    assert (await look(town, now=later))["webhooks.owed"].level == "note"


async def test_this_machine_as_an_endpoint(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        assert levels(await seen_by(check_settings, gateway)) == {"webhooks.allow_loopback": "note"}
        # Beside a live merchant it is off, whatever the setting.
        assert levels(await seen_by(check_settings, gateway, is_live=True)) == {"webhooks.allow_loopback": "ok"}
    async with running_gateway(values | {"webhooks": {"allow_loopback": False}}) as (gateway, _):
        assert levels(await seen_by(check_settings, gateway, is_live=True)) == {"webhooks.allow_loopback": "ok"}
