"""Protects the operators' page of registrations: a doubtful one is named on the overview."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.ops_contract import MerchantRole, Role
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, signed_in
from tests.daraja import fault
from tests.plugins.c2b.c2b_site import C2bSite, c2b_site


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        await found.gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        yield found


async def test_page_shows_registrations_and_the_overview_names_a_doubtful_one(site: C2bSite) -> None:
    async with signed_in(f"{site.base}/ops") as browser:
        assert "No shortcode is registered" in (await browser.open("/c2b")).words
        site.daraja.add_answers("c2bregister2", fault("500.003.1001", "Duplicate notification info, SP ID 123"))
        await site.register()
        assert "1 C2B registration is refused or of unknown outcome" in (await browser.open("")).words
        await site.register(validation="rules")
        page = await browser.open("/c2b")
        assert page.unbalanced_tags == []
        assert "174379" in page.words
        assert "Safaricom calls this gateway about each payment to 174379" in page.words
        assert "C2B registration is" not in (await browser.open("")).words


async def test_member_sees_the_registrations_of_its_merchant_only(site: C2bSite) -> None:
    people, memberships = site.gateway.port(People), site.gateway.port(Memberships)
    await site.register()
    own = await site.gateway.db.fetchval("SELECT merchant_id FROM shortcode")
    other = (await site.gateway.merchants.create("Other", actor="test")).merchant_id
    for merchant_id, email in ((own, "own@shop.example"), (other, "other@shop.example")):
        person = await people.create(email, PASSWORD, role=None, actor="test")
        await memberships.add(merchant_id, person.person_id, MerchantRole.OWNER, actor="test")
    async with signed_in(f"{site.base}/ops", "own@shop.example") as browser:
        assert "174379" in (await browser.open("/c2b")).words
        assert "174379" in (await browser.open(f"/c2b?merchant={other}")).words
    async with signed_in(f"{site.base}/ops", "other@shop.example") as browser:
        for path in ("/c2b", f"/c2b?merchant={own}"):
            assert "No shortcode is registered" in (await browser.open(path)).words
