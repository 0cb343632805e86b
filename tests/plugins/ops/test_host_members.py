"""A role of the host together with a membership: a membership gives no rights over other merchants."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from mpesa_gateway.ops_contract import MerchantRole, Role
from mpesa_gateway.testing.serving import INITIATED, Api, shop
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.sessions import Session
from tests.browsing import PASSWORD, Browser, signed_in
from tests.loose_money import receive_loose_at
from tests.plugins.ops.conftest import OpsSite

PAYER = "254711000001"


@pytest.fixture
async def second(ops_site: OpsSite) -> AsyncGenerator[Api]:
    """Another merchant."""
    async with shop(ops_site.gateway, ops_site.url.removesuffix("/ops"), webhook_url=ops_site.receiver.url) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        yield api


@pytest.fixture
async def both(ops_site: OpsSite, second: Api) -> AsyncGenerator[tuple[Browser, str]]:
    """A viewer of the host who owns the second merchant, with the second merchant's id."""
    other_id = (await second.call("GET", "/v1/merchant/me")).data["id"]
    people, memberships = ops_site.gateway.port(People), ops_site.gateway.port(Memberships)
    person = await people.create("both@town.example", PASSWORD, role=Role.VIEWER, actor="test")
    await memberships.add(other_id, person.person_id, MerchantRole.OWNER, actor="test")
    async with signed_in(ops_site.url, "both@town.example") as browser:
        yield browser, other_id


async def test_viewer_of_the_host_who_owns_a_shop_sees_no_numbers_of_other_merchants(
    ops_site: OpsSite, both: tuple[Browser, str]
) -> None:
    browser, _ = both
    await ops_site.api.pay(PAYER, key="one")
    page = await browser.open("/payments")
    assert PAYER not in page.text


async def test_viewer_of_the_host_who_owns_a_shop_exports_no_payments_of_other_merchants(
    ops_site: OpsSite, both: tuple[Browser, str]
) -> None:
    browser, _ = both
    await ops_site.api.pay(PAYER, key="one")
    answer = await browser.open("/payments/export")
    assert PAYER not in answer.text, answer.text


async def test_viewer_of_the_host_who_owns_a_shop_takes_no_money_of_other_merchants(
    ops_site: OpsSite, both: tuple[Browser, str]
) -> None:
    browser, _ = both
    transaction_id = await receive_loose_at(ops_site.gateway, "TKM0000001", payer=PAYER)
    token = (await browser.open("/account")).field("form_token")
    await browser.send(
        "/transactions/counter",
        {"form_token": token, "transaction_id": transaction_id, "order": "1", "shortcode": "174379"},
    )
    rows = await ops_site.gateway.db.fetch("SELECT subject_kind FROM transaction")
    assert [row["subject_kind"] for row in rows] == [None]


async def test_viewer_of_the_host_who_owns_a_shop_creates_no_key_for_the_whole_gateway(
    ops_site: OpsSite, both: tuple[Browser, str]
) -> None:
    browser, other_id = both
    token = (await browser.open("/account")).field("form_token")
    await browser.send(
        f"/merchants/{other_id}", {"form_token": token, "name": "x", "scopes": "admin", "env": "sandbox"}
    )
    keys = await ops_site.gateway.api_keys.list(other_id)
    assert [key.name for key in keys if "admin" in key.scopes] == []


async def test_viewer_of_the_host_who_owns_a_shop_runs_no_reconciliation_of_other_merchants(
    ops_site: OpsSite, both: tuple[Browser, str]
) -> None:
    browser, _ = both
    token = (await browser.open("/account")).field("form_token")
    answer = await browser.send("/reconciliation", {"form_token": token, "merchant": ops_site.merchant_id})
    count = await ops_site.gateway.db.fetchval(
        "SELECT count(*) FROM reconciliation_run WHERE merchant_id = $1", ops_site.merchant_id
    )
    assert count == 0, answer.words


async def test_viewer_of_the_host_who_owns_a_shop_acts_for_the_own_shop_as_its_owner(
    both: tuple[Browser, str], second: Api
) -> None:
    browser, other_id = both
    payment_id = (await second.pay(PAYER, key="one")).data["id"]
    assert PAYER in (await browser.open(f"/payments/{payment_id}")).text
    exported = await browser.open("/payments/export")
    assert payment_id in exported.text
    page = await browser.open(f"/merchants/{other_id}")
    assert '"admin"' not in page.text
    made = await browser.submit(page, f"/merchants/{other_id}", name="till", scopes="payments:read", env="sandbox")
    assert "API key `till` created" in made.words, made.words


async def test_viewer_of_the_host_who_owns_a_shop_has_the_hosts_rights_on_other_objects(
    ops_site: OpsSite, both: tuple[Browser, str]
) -> None:
    browser, _ = both
    payment_id = (await ops_site.api.pay(PAYER, key="one")).data["id"]
    page = await browser.open(f"/payments/{payment_id}")
    assert (page.status, PAYER in page.text) == (200, False)
    token = (await browser.open("/account")).field("form_token")
    assert (await browser.send(f"/payments/{payment_id}/query", {"form_token": token})).status == 403


@pytest.mark.parametrize("lacks_factor", [False, True])
@pytest.mark.parametrize("host", [None, *Role])
@pytest.mark.parametrize("member", list(MerchantRole))
def test_rights_over_all_merchants_are_those_of_the_host_role_alone(
    host: Role | None, member: MerchantRole, lacks_factor: bool
) -> None:
    session = Session(
        name="x", actor="x", form_token="", owner="", host_role=host, memberships={"own": member}, chosen="own"
    )
    session = replace(session, lacks_factor=lacks_factor)
    alone = replace(session, memberships={})
    for merchant_id in (None, "other"):
        assert session.visitor(merchant_id).permissions == alone.visitor(None).permissions
    own = replace(session, host_role=None).visitor("own").permissions
    assert session.visitor("own").permissions == own | alone.visitor(None).permissions
