"""Lists and pages of a member, with filters that cannot be read: no other merchant is shown."""

import re
from collections.abc import AsyncGenerator

import pytest

from mpesa_gateway.ops_contract import MerchantRole
from mpesa_gateway.testing.serving import INITIATED, Api, shop
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, Browser, signed_in
from tests.loose_money import receive_loose_at
from tests.plugins.ops.conftest import OpsSite


@pytest.fixture
async def second(ops_site: OpsSite) -> AsyncGenerator[Api]:
    """Another merchant."""
    async with shop(ops_site.gateway, ops_site.url.removesuffix("/ops"), webhook_url=ops_site.receiver.url) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        yield api


@pytest.fixture
async def member(ops_site: OpsSite, second: Api) -> AsyncGenerator[Browser]:
    """A viewer of the second merchant only."""
    other_id = (await second.call("GET", "/v1/merchant/me")).data["id"]
    people, memberships = ops_site.gateway.port(People), ops_site.gateway.port(Memberships)
    person = await people.create("viewer@other.example", PASSWORD, role=None, actor="test")
    await memberships.add(other_id, person.person_id, MerchantRole.VIEWER, actor="test")
    async with signed_in(ops_site.url, "viewer@other.example") as browser:
        yield browser


@pytest.mark.parametrize(
    "query",
    [
        "min_amount=cheap",
        "status=paid",
        "phone=0711000001",
        "since=yesterday",
        "limit=5",
        "terms=x",
        "payer=x",
        "cursor=x",
    ],
)
@pytest.mark.parametrize("path", ["payments", "transactions", "refunds", "webhooks/deliveries", "reconciliation/lines"])
async def test_list_with_an_unreadable_filter_shows_a_member_no_other_merchant(
    ops_site: OpsSite, member: Browser, path: str, query: str
) -> None:
    payment_id = (await ops_site.api.pay("254711000001", key="one", reference="SECRET-REF")).data["id"]
    await receive_loose_at(ops_site.gateway, "TKM0000001", account_number="SECRET-REF")
    page = await member.open(f"/{path}?{query}")
    assert payment_id not in page.text, page.words[:600]
    assert "SECRET-REF" not in page.text
    assert "TKM0000001" not in page.text


async def test_form_refused_on_a_list_shows_a_member_no_other_merchant(ops_site: OpsSite, member: Browser) -> None:
    """Acts without a page of their own, and searches that are refused, lead back to lists."""
    payment_id = (await ops_site.api.pay("254711000001", key="one", reference="SECRET-REF")).data["id"]
    token = (await member.open("/account")).field("form_token")
    for fields in ({"search": "0711000001"}, {"phone": "x"}, {"min_amount": "x"}, {"since": "x"}):
        page = await member.send("/payments/look", {"form_token": token} | fields)
        assert payment_id not in page.text, fields


async def test_every_list_with_an_unreadable_filter_shows_a_member_no_other_merchant(
    ops_site: OpsSite, member: Browser
) -> None:
    payment_id = (await ops_site.api.pay("254711000001", key="one", reference="SECRET-REF")).data["id"]
    await ops_site.api.settled(payment_id, "completed")
    pages, _ = ops_site.gateway.port(PageRegistry).every()
    found: list[str] = []
    tried = 0
    for page in pages:
        if "{" in page.path:
            continue
        tried += 1
        for query in ("nonsense=1", "min_amount=x", "cursor=x", "status=x", "merchant=x", "since=x", "terms=x"):
            shown = await member.open(f"/{page.path}?{query}", follows=False)
            if re.search(f"{payment_id}|SECRET-REF|{ops_site.merchant_id}", shown.text):
                found.append(f"/{page.path}?{query}")
    assert (found, tried > 15) == ([], True)


async def test_owner_reads_no_whole_number_of_another_merchant_by_an_unreadable_filter(
    ops_site: OpsSite, second: Api
) -> None:
    other_id = (await second.call("GET", "/v1/merchant/me")).data["id"]
    people, memberships = ops_site.gateway.port(People), ops_site.gateway.port(Memberships)
    person = await people.create("owner@other.example", PASSWORD, role=None, actor="test")
    await memberships.add(other_id, person.person_id, MerchantRole.OWNER, actor="test")
    await ops_site.api.pay("254711000001", key="one")
    async with signed_in(ops_site.url, "owner@other.example") as browser:
        assert "254711000001" not in (await browser.open("/payments?min_amount=x")).text


async def test_page_of_another_merchants_object_answers_as_for_an_unknown_one(
    ops_site: OpsSite, member: Browser
) -> None:
    transaction_id = await receive_loose_at(ops_site.gateway, "TKM0000001")
    payment_id = (await ops_site.api.pay("254711000001", key="one")).data["id"]
    differ: list[str] = []
    for path, real in (("transactions", transaction_id), ("payments", payment_id)):
        unknown = real[:-6] + ("000000" if real[-6:] != "000000" else "000001")
        theirs, none = await member.open(f"/{path}/{real}"), await member.open(f"/{path}/{unknown}")
        assert (theirs.status, none.status) == (404, 404)
        if theirs.words != none.words:
            differ.append(path)
    assert differ == []
