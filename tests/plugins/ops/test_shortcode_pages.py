"""Protects the pages of a merchant's shortcodes: added, edited, verified, made the default, registered and retired."""

from typing import Any

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import INITIATED
from tests.browsing import Browser
from tests.plugins.ops.conftest import OpsSite

FIRST, SECOND = INITIATED["mpesa"]["shortcode"], "5123456"
TILL = {
    "name": "Westlands",
    "shortcode": "600002",
    "till_number": SECOND,
    "consumer_key": "consumer-key-of-the-till",
    "consumer_secret": "consumer-secret-of-the-till",
    "passkey": "passkey-of-the-till-in-westlands",
    "nominated_number": "254708374149",
}


async def codes(site: OpsSite) -> dict[str, dict[str, Any]]:
    return {each["shortcode"]: each for each in (await site.api.call("GET", "/v1/merchant/shortcodes")).data}


async def add_till(site: OpsSite, browser: Browser) -> str:
    """Add the till by its form. Returns the words of the next page."""
    page = await browser.open(f"/credentials/{site.merchant_id}")
    form = await browser.open(page.link(f"/credentials/{site.merchant_id}/add"))
    assert form.unbalanced_tags == []
    return (await browser.submit(form, "/add", **TILL)).words


async def test_page_of_one_shortcode_has_no_choice_between_several(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        page = await browser.open(f"/credentials/{ops_site.merchant_id}")
        assert not any(word in page.words for word in ("Make default", "Payments that name no shortcode"))
        form = await browser.open(f"/merchants/{ops_site.merchant_id}/payment")
        assert "shortcode" not in form.form("/payment").fields


async def test_added_shortcode_is_listed_and_a_wrong_field_is_named(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        form = await browser.open(f"/credentials/{ops_site.merchant_id}/add")
        wrong = await browser.submit(form, "/add", **(TILL | {"passkey": "short", "till_number": "x"}))
        assert "must be 5 to 7 digits" in wrong.words
        assert (wrong.field("name"), wrong.field("shortcode")) == ("Westlands", "600002")
        taken = await browser.submit(form, "/add", **(TILL | {"shortcode": FIRST, "till_number": ""}))
        assert f"shortcode {FIRST} is stored" in taken.words
        assert list(await codes(ops_site)) == [FIRST]
        assert f"Sandbox credentials of shortcode {SECOND} stored." in await add_till(ops_site, browser)
        found = (await codes(ops_site))[SECOND]
        assert (found["name"], found["kind"], found["is_default"]) == ("Westlands", "till", False)
        page = await browser.open(f"/credentials/{ops_site.merchant_id}")
        assert page.unbalanced_tags == []
        assert f"Sandbox {FIRST}" in page.words
        assert f"Sandbox {SECOND} Westlands" in page.words
        assert TILL["passkey"] not in page.text
        merchant = await browser.open(f"/merchants/{ops_site.merchant_id}")
        assert f"sandbox credentials for shortcode {SECOND} Westlands, not the default" in merchant.words


async def test_edited_shortcode_keeps_secrets_that_stay_empty(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        await add_till(ops_site, browser)
        before = await codes(ops_site)
        form = await browser.open(f"/credentials/{ops_site.merchant_id}/shortcodes/{SECOND}")
        assert (form.field("name"), form.field("till_number")) == ("Westlands", SECOND)
        moved = await browser.submit(form, f"/shortcodes/{SECOND}", till_number="5123457")
        assert "is required" in moved.words
        await browser.submit(form, f"/shortcodes/{SECOND}", name="Karen", account_reference="KAREN")
        after = await codes(ops_site)
        assert after[FIRST] == before[FIRST]
        assert (after[SECOND]["name"], after[SECOND]["config_summary"]["passkey"]) == (
            "Karen",
            before[SECOND]["config_summary"]["passkey"],
        )
        assert after[SECOND]["config_summary"]["account_reference"] == "KAREN"
        assert (await browser.open(f"/credentials/{ops_site.merchant_id}/shortcodes/600009")).status == 404


async def test_shortcode_is_verified_made_the_default_and_retired(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        await add_till(ops_site, browser)
        at = f"/credentials/{ops_site.merchant_id}"
        page = await browser.submit(await browser.open(at), f"/shortcodes/{SECOND}/verify")
        assert "Credentials valid" in page.words
        assert (await codes(ops_site))[SECOND]["verified_at"] is not None
        page = await browser.submit(page, f"/shortcodes/{SECOND}/default")
        assert f"Shortcode {SECOND} is the sandbox default" in page.words
        assert not page.has_form("/retire") or page.has_form(f"/shortcodes/{FIRST}/retire")
        assert "tick the box" in (await browser.submit(page, f"/shortcodes/{FIRST}/retire")).words
        page = await browser.submit(page, f"/shortcodes/{FIRST}/retire", confirm=ops_site.merchant_id)
        assert f"Shortcode {FIRST} is retired: no new payments. Nothing of it is open." in page.words
        found = await codes(ops_site)
        assert [number for number, each in found.items() if each["retired_at"] is None] == [SECOND]
        refused = await browser.send(f"{at}/shortcodes/{FIRST}/default", {"form_token": page.field("form_token")})
        assert "there is no such active shortcode" in refused.words
    acts = [act for act, _ in await ops_site.acted()]
    assert set(acts) >= {
        f"credentials.{name}" for name in ("add_shortcode", "verify_shortcode", "make_default", "retire_shortcode")
    }


async def test_pull_and_payments_use_the_chosen_shortcode(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        await add_till(ops_site, browser)
        page = await browser.open(f"/credentials/{ops_site.merchant_id}")
        forms = [form for form in page.forms if form.action.endswith("/pull")]
        assert [form.fields["shortcode"] for form in forms] == [[FIRST], [SECOND]]
        done = await browser.send(forms[1].action, forms[1].fields)
        assert f"Pull registered for {SECOND}." in done.words
        form = await browser.open(f"/merchants/{ops_site.merchant_id}/payment")
        assert form.form("/payment").choices["shortcode"] == [FIRST, SECOND]
        await browser.submit(form, "/payment", phone="0711000001", amount="10", shortcode=SECOND)
        assert [each["shortcode"] for each in (await ops_site.api.call("GET", "/v1/payments")).data] == [SECOND]
        listed = await browser.submit(await browser.open("/payments"), "/payments/look", shortcode=FIRST)
        assert "No payment matches these filters" in listed.words
        listed = await browser.submit(listed, "/payments/look", shortcode=SECOND)
        assert "No payment matches" not in listed.words
        runs = await browser.open("/reconciliation")
        run = await browser.submit(runs, "/reconciliation", merchant=ops_site.merchant_id, shortcode=SECOND)
        assert f"shortcode {SECOND}" in run.words


async def test_viewer_changes_no_shortcode(ops_site: OpsSite) -> None:
    async with ops_site.browser() as admin, ops_site.browser(Role.VIEWER) as viewer:
        await add_till(ops_site, admin)
        before = await codes(ops_site)
        at = f"/credentials/{ops_site.merchant_id}"
        page = await viewer.open(at)
        assert not any(each in link for link in page.links for each in ("/add", "/shortcodes/"))
        token = (await viewer.open("/account")).field("form_token")
        for path in ("add", *(f"shortcodes/{SECOND}{each}" for each in ("", "/default", "/retire", "/verify"))):
            sent = {"form_token": token, "confirm": ops_site.merchant_id}
            assert (await viewer.send(f"{at}/{path}", sent)).status == 403, path
        assert await codes(ops_site) == before
