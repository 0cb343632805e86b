"""Operators look at one env at a time: what is listed, counted and found is of it, and the banner says which."""

import pytest

from mpesa_gateway.env import ENVS
from mpesa_gateway.testing.serving import Api
from tests.plugins.ops.conftest import Desk
from tests.worlds import mirror

pytestmark = pytest.mark.as_owner

LISTS = ("payments", "refunds", "reconciliation", "callbacks", "webhooks", "webhooks/deliveries", "events", "audit")


@pytest.fixture
async def both(desk: Desk) -> dict[str, str]:
    """A payment in each env, by env."""
    made = (await desk.api.pay("254711000001", key="order-1")).data
    await desk.api.settled(made["id"], "completed")
    await desk.receiver.wait_for(1)
    await mirror(desk.gateway, desk.merchant_id)
    rows = await desk.gateway.db.fetch("SELECT env, payment_id FROM payment")
    return {row["env"]: row["payment_id"] for row in rows}


async def test_each_page_shows_the_env_of_its_banner_and_links_keep_it(desk: Desk, both: dict[str, str]) -> None:
    async with desk.browser() as browser:
        # Live first: a merchant moves real money.
        assert "LIVE real money" in (await browser.opens("")).words
        for env, other in zip(ENVS, reversed(ENVS), strict=True):
            page = await browser.opens(f"/{env}?to=payments")
            for path in LISTS:
                page = await browser.opens(f"/{path}")
                assert (page.status, page.untidy) == (200, []), path
                assert f"{env.upper()} " in page.words
                assert both[other] not in page.text, path
                assert any(link.endswith(f"/ops/{other}?to={path}") for link in page.links), path
            assert both[env] in (await browser.opens("/payments")).text
            found = await browser.submits(await browser.opens("/payments"), "/payments/look", search="order-1")
            assert both[env] in found.text
            assert both[other] not in found.text


async def test_a_page_about_an_object_of_the_other_env_switches_to_it(desk: Desk, both: dict[str, str]) -> None:
    async with desk.browser() as browser:
        for env, other in zip(ENVS, reversed(ENVS), strict=True):
            await browser.opens(f"/{other}")
            page = await browser.opens(f"/payments/{both[env]}")
            assert (page.status, f"{env.upper()} " in page.words) == (200, True)
            # And it stays so.
            assert f"{env.upper()} " in (await browser.opens("/payments")).words
            assert f"{other.upper()} " in (await browser.opens(f"/payments?env={other}")).words
            assert f"{other.upper()} " in (await browser.opens("/refunds")).words


@pytest.mark.usefixtures("both")
async def test_a_form_acts_in_the_env_that_it_was_shown_in(desk: Desk) -> None:
    async with desk.browser() as browser:
        await browser.opens("/sandbox")
        page = await browser.opens("/reconciliation")
        # Another tab goes on in live.
        await browser.opens("/live")
        await browser.submits(page, "/reconciliation", merchant=desk.merchant_id)
        assert await desk.gateway.db.fetchval("SELECT array_agg(env) FROM reconciliation_run") == ["sandbox"]
        acted = (await desk.gateway.audit.page(1, None, "operator.acted", None)).rows[0]
        assert acted.detail["env"] == "sandbox"


@pytest.mark.parametrize("to", ["https://elsewhere.example", "//elsewhere.example", "nowhere", "../v1/payments"])
async def test_the_switch_leads_to_pages_of_ours_only(desk: Desk, to: str) -> None:
    async with desk.browser() as browser:
        page = await browser.opens(f"/live?to={to}", follows=False)
        assert page.status == 303
        assert page.headers["location"] in {"../ops", "ops", "./"}


async def test_what_needs_attention_is_told_in_its_env(desk: Desk, both: dict[str, str]) -> None:
    assert set(both) == set(ENVS)
    _, secret = await desk.gateway.api_keys.create(
        desk.merchant_id, name="live", scopes=desk.gateway.scopes.of_merchants, env="live", actor="test"
    )
    live = Api(desk.api.base, secret.reveal())
    assert (await live.call("DELETE", "/v1/merchant/webhook")).status == 200
    await live.close()
    await desk.gateway.db.execute(
        "UPDATE delivery SET status = 'waiting', due_at = NULL, leased_until = NULL, delivered_at = NULL "
        "WHERE env = 'live'"
    )
    async with desk.browser() as browser:
        assert "no live webhook endpoint" in (await browser.opens("/live")).words
        assert "webhook endpoint" not in (await browser.opens("/sandbox")).words
