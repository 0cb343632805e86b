"""Protects operators from mixing envs: each page lists, counts and changes the env of its banner only."""

import pytest

from mpesa_gateway.env import ENVS
from mpesa_gateway.testing.serving import Api
from tests.browsing import set_up_factor
from tests.plugins.ops.conftest import OpsSite
from tests.worlds import mirror

pytestmark = pytest.mark.as_owner

LISTS = ("payments", "refunds", "reconciliation", "callbacks", "webhooks", "webhooks/deliveries", "events", "audit")


@pytest.fixture
async def payment_by_env(ops_site: OpsSite) -> dict[str, str]:
    """Returns a payment id by env."""
    made = (await ops_site.api.pay("254711000001", key="order-1")).data
    await ops_site.api.settled(made["id"], "completed")
    await ops_site.receiver.wait_for(1)
    await mirror(ops_site.gateway, ops_site.merchant_id)
    rows = await ops_site.gateway.db.fetch("SELECT env, payment_id FROM payment")
    return {row["env"]: row["payment_id"] for row in rows}


async def test_page_shows_the_env_of_its_banner_only(ops_site: OpsSite, payment_by_env: dict[str, str]) -> None:
    async with ops_site.browser() as browser:
        await set_up_factor(browser)
        # Live is the default if a merchant is live.
        assert "LIVE real money" in (await browser.open("")).words
        for env, other in zip(ENVS, reversed(ENVS), strict=True):
            page = await browser.open(f"/{env}?to=payments")
            for path in LISTS:
                page = await browser.open(f"/{path}")
                assert (page.status, page.unbalanced_tags) == (200, []), path
                assert f"{env.upper()} " in page.words
                assert payment_by_env[other] not in page.text, path
                assert any(link.endswith(f"/ops/{other}?to={path}") for link in page.links), path
            assert payment_by_env[env] in (await browser.open("/payments")).text
            found = await browser.submit(await browser.open("/payments"), "/payments/look", search="order-1")
            assert payment_by_env[env] in found.text
            assert payment_by_env[other] not in found.text


async def test_page_of_an_object_of_the_other_env_switches_to_it(
    ops_site: OpsSite, payment_by_env: dict[str, str]
) -> None:
    async with ops_site.browser() as browser:
        await set_up_factor(browser)
        for env, other in zip(ENVS, reversed(ENVS), strict=True):
            await browser.open(f"/{other}")
            page = await browser.open(f"/payments/{payment_by_env[env]}")
            assert (page.status, f"{env.upper()} " in page.words) == (200, True)
            # The switch applies to the pages after it.
            assert f"{env.upper()} " in (await browser.open("/payments")).words
            assert f"{other.upper()} " in (await browser.open(f"/payments?env={other}")).words
            assert f"{other.upper()} " in (await browser.open("/refunds")).words


@pytest.mark.usefixtures("payment_by_env")
async def test_form_posted_after_a_switch_acts_in_its_own_env(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        await set_up_factor(browser)
        await browser.open("/sandbox")
        page = await browser.open("/reconciliation")
        # Another tab switches to live.
        await browser.open("/live")
        await browser.submit(page, "/reconciliation", merchant=ops_site.merchant_id)
        assert await ops_site.gateway.db.fetchval("SELECT array_agg(env) FROM reconciliation_run") == ["sandbox"]
        acted = (await ops_site.gateway.audit.page(1, None, "operator.acted", None)).rows[0]
        assert acted.detail["env"] == "sandbox"


@pytest.mark.parametrize("to", ["https://elsewhere.example", "//elsewhere.example", "nowhere", "../v1/payments"])
async def test_env_switch_redirects_to_our_own_pages_only(ops_site: OpsSite, to: str) -> None:
    async with ops_site.browser() as browser:
        page = await browser.open(f"/live?to={to}", follows=False)
        assert page.status == 303
        assert page.headers["location"] in {"../ops", "ops", "./"}


async def test_overview_shows_what_needs_attention_in_its_env_only(
    ops_site: OpsSite, payment_by_env: dict[str, str]
) -> None:
    assert set(payment_by_env) == set(ENVS)
    _, secret = await ops_site.gateway.api_keys.create(
        ops_site.merchant_id, name="live", scopes=ops_site.gateway.scopes.of_merchants, env="live", actor="test"
    )
    live = Api(ops_site.api.base, secret.reveal())
    assert (await live.call("DELETE", "/v1/merchant/webhook")).status == 200
    await live.close()
    await ops_site.gateway.db.execute(
        "UPDATE delivery SET status = 'waiting', due_at = NULL, leased_until = NULL, delivered_at = NULL "
        "WHERE env = 'live'"
    )
    async with ops_site.browser() as browser:
        await set_up_factor(browser)
        assert "no live webhook endpoint" in (await browser.open("/live")).words
        assert "webhook endpoint" not in (await browser.open("/sandbox")).words
