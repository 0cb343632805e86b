"""Protects second factors on the pages: who needs one, the code at sign-in, and a recent code before some actions."""

import re
from typing import Any

import pytest

from mpesa_gateway.permissions import MerchantRole, Role
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, Browser, set_up_factor, signed_in
from tests.plugins.ops.conftest import OpsSite


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that require second factors in the sandbox too."""
    return values | {"ops": {"second_factor": "always"}, "refunds": {"step_up_above": 100}}


async def _member(site: OpsSite, role: MerchantRole) -> str:
    email = f"{role}@town.example"
    person = await site.gateway.port(People).create(email, PASSWORD, role=None, actor="test")
    await site.gateway.port(Memberships).add(site.merchant_id, person.person_id, role, actor="test")
    return email


async def _expire_codes(site: OpsSite) -> None:
    await site.gateway.db.execute("UPDATE ops_session SET verified_at = verified_at - interval '1 hour'")


async def test_second_factor_is_required_of_owner_approver_and_admin_for_every_page(ops_site: OpsSite) -> None:
    emails = [await _member(ops_site, role) for role in (MerchantRole.OWNER, MerchantRole.APPROVER)]
    for email in (*emails, "amina@shop.example"):
        async with Browser(ops_site.url) as browser:
            page = await browser.sign_in(email)
            assert page.url == f"{ops_site.url}/account/second-factor", email
            assert "your role needs a second factor" in page.words
            assert (await browser.open("/payments")).url == f"{ops_site.url}/account/second-factor"
            assert (await browser.open("/account")).status == 200
            await set_up_factor(browser)
            assert (await browser.open("/payments")).url == f"{ops_site.url}/payments"


async def test_manager_without_a_second_factor_sees_masked_numbers_and_moves_no_money(ops_site: OpsSite) -> None:
    made = (await ops_site.api.pay("254711000001", key="one")).data
    await ops_site.api.settled(made["id"], "completed")
    async with signed_in(ops_site.url, await _member(ops_site, MerchantRole.MANAGER)) as browser:
        page = await browser.open("/payments")
        assert made["id"] in page.text
        assert "254711000001" not in page.text
        refused = await browser.open(f"/payments/{made['id']}/refund")
        assert refused.url == f"{ops_site.url}/account/second-factor"
        await set_up_factor(browser)
        assert "254711000001" in (await browser.open("/payments")).text
        assert (await browser.open(f"/payments/{made['id']}/refund")).status == 200


async def test_sign_in_asks_for_a_code_and_takes_a_recovery_code_once(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        codes = await set_up_factor(browser)
    async with Browser(ops_site.url) as browser:
        page = await browser.sign_in("amina")
        assert page.url == f"{ops_site.url}/login-code"
        # No page and no action is open before the code.
        for path in ("", "/payments", "/account", "/queue/api/queues"):
            assert (await browser.open(path)).url == f"{ops_site.url}/login-code", path
        assert (await browser.send("/account/codes", {})).url == f"{ops_site.url}/login-code"
        wrong = await browser.submit(page, "/login-code", code="000000")
        assert (wrong.status, "The code is wrong" in wrong.words) == (401, True)
        assert (await browser.submit(wrong, "/login-code", code=codes[0])).url == ops_site.url
        assert "9 recovery codes left" in (await browser.open("/account")).words
    async with Browser(ops_site.url) as browser:
        page = await browser.sign_in("amina")
        assert (await browser.submit(page, "/login-code", code=codes[0])).status == 401


async def test_key_needs_a_recent_code_and_the_form_is_kept(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        codes = await set_up_factor(browser)
        await _expire_codes(ops_site)
        page = await browser.open(f"/merchants/{ops_site.merchant_id}")
        filled = {"name": "till", "env": "sandbox", "scopes": ["payments:read", "refunds:read"]}
        asked = await browser.submit(page, f"/merchants/{ops_site.merchant_id}", **filled)
        assert "Confirm with a code" in asked.words
        assert len(await ops_site.gateway.api_keys.list(ops_site.merchant_id)) == 1
        wrong = await browser.submit(asked, f"/merchants/{ops_site.merchant_id}", second_factor_code="000000")
        assert (wrong.status, "The code is wrong" in wrong.words) == (403, True)
        done = await browser.submit(wrong, f"/merchants/{ops_site.merchant_id}", second_factor_code=codes[0])
        assert "API key `till` created" in done.words
        key = (await ops_site.gateway.api_keys.list(ops_site.merchant_id))[0]
        assert (key.name, key.scopes) == ("till", ("payments:read", "refunds:read"))


async def test_refund_above_the_setting_needs_a_recent_code(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        codes = await set_up_factor(browser)
        await _expire_codes(ops_site)
        for number, (amount, is_asked) in enumerate([(100, False), (101, True)]):
            made = (await ops_site.api.pay(f"25471100010{number}", key=f"k{number}", amount=amount)).data
            await ops_site.api.settled(made["id"], "completed")
            page = await browser.open(f"/payments/{made['id']}/refund")
            path = f"/payments/{made['id']}/refund"
            answer = await browser.submit(page, path, confirm=made["id"])
            assert ("Confirm with a code" in answer.words) is is_asked, amount
            if is_asked:
                answer = await browser.submit(answer, path, second_factor_code=codes[1])
            assert "Refund requested" in answer.words, answer.words


async def test_password_change_ends_other_sessions_and_needs_the_current_one(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.VIEWER) as browser, ops_site.browser(Role.VIEWER) as other:
        page = await browser.open("/account")
        new = "another long password"
        wrong = await browser.submit(page, "/account/password", current="x" * 12, password=new, again=new)
        assert "current password is wrong" in wrong.words
        differs = await browser.submit(page, "/account/password", current="x", password=new, again=new + "x")
        assert "differ" in differs.words
        done = await browser.submit(page, "/account/password", current=PASSWORD.reveal(), password=new, again=new)
        assert "Password changed" in done.words
        assert (await browser.open("/account")).status == 200
        assert (await other.open("/account")).url == f"{ops_site.url}/login"


async def test_session_is_listed_and_ended_by_its_person(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.VIEWER) as browser, ops_site.browser(Role.VIEWER) as other:
        page = await browser.open("/account")
        form = page.form("/account/session")
        assert "Session ended." in (await browser.send(form.action, form.fields)).words
        assert (await other.open("/account")).url == f"{ops_site.url}/login"
        # Another person's session cannot be ended.
        key = (await ops_site.gateway.db.fetchval("SELECT digest FROM ops_session LIMIT 1")).hex()
        async with ops_site.browser(Role.ADMIN) as stranger:
            token = (await stranger.open("/account")).field("form_token")
            answer = await stranger.send("/account/session", {"form_token": token, "session": key})
            assert "has ended" in answer.words
        assert (await browser.open("/account")).status == 200


async def test_owner_invites_a_member_who_joins_by_the_link(ops_site: OpsSite) -> None:
    owner = await _member(ops_site, MerchantRole.OWNER)
    async with signed_in(ops_site.url, owner) as browser:
        await set_up_factor(browser)
        page = await browser.open(f"/merchants/{ops_site.merchant_id}/people")
        assert page.unbalanced_tags == []
        path = f"/merchants/{ops_site.merchant_id}/people"
        known = await browser.submit(page, path, email="viola@shop.example", role="viewer")
        done = await browser.submit(page, path, email="Zuri@town.example", role="cashier")
        # The answer does not depend on whether the address is known.
        hide = re.compile(r"http://\S+/ops/join/[0-9a-f]{64}|note=[0-9a-f]+|viola@shop|zuri@town|cashier|viewer")
        sections = [hide.sub("", each.words.partition("Shown once")[0]) for each in (known, done)]
        assert sections[0] == sections[1]
        link = re.search(r"http://\S+/ops/join/[0-9a-f]{64}", done.text)
        assert link is not None
        assert "zuri@town.example" in done.words
        assert ("Only this person may see it" in done.words, "secret store" in done.words) == (True, False)
    async with Browser(ops_site.url) as browser:
        page = await browser.open(link[0])
        assert "zuri@town.example is invited to Test shop as cashier" in page.words
        token = link[0].rpartition("/")[2]
        assert (await browser.submit(page, f"/join/{token}", name="Zuri", password="short")).status == 422
        joined = await browser.submit(page, f"/join/{token}", name="Zuri", password=PASSWORD.reveal())
        assert "Sign in with your address" in joined.words
        assert (await browser.open(link[0])).status == 404
        assert (await browser.sign_in("zuri@town.example")).status == 200
        page = await browser.open(f"/merchants/{ops_site.merchant_id}")
        assert "Zuri cashier" in page.words
        assert (await browser.open("/merchants")).status == 403
    audit = await ops_site.gateway.audit.page(50, ops_site.merchant_id, None, None)
    assert {"person.invited", "person.invitation_accepted", "membership.added"} <= {one.action for one in audit.rows}
