"""Protects the set-up of a merchant by pages: each form, the checklist from facts, and the same checks as the API."""

import re
from typing import Any

import pytest

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import SANDBOX, eventually
from tests.browsing import Browser, Page
from tests.plugins.ops.conftest import OpsSite

KEYS = {
    "shortcode": "174379",
    "consumer_key": "consumer-key-of-this-shop",
    "consumer_secret": "consumer-secret-of-this-shop",
    "passkey": SANDBOX["mpesa"]["passkey"],
}
STEPS = ["Merchant", "M-Pesa credentials", "Verified by M-Pesa", "Webhook", "Test event", "API key", "First payment"]


def checklist(page: Page) -> dict[str, bool]:
    """Returns the steps on a page, True for done ones."""
    found = re.search(r"<ol data-steps>(.*?)</ol>", page.text, re.DOTALL)
    steps = re.findall(r"<li.*?(not done|done)</b>.*?<strong>(.*?)</strong>", found[1], re.DOTALL) if found else []
    return {title: word == "done" for word, title in steps}


async def new_merchant(browser: Browser, name: str = "Duka la Amina") -> tuple[str, Page]:
    shown = await browser.submit(await browser.open("/merchants"), "/merchants", name=name)
    return shown.url.partition("?")[0].rpartition("/")[2], shown


async def stored(ops_site: OpsSite, merchant_id: str, env: str = "sandbox") -> dict[str, Any] | None:
    """Returns the merchant's row of its default shortcode."""
    row = await ops_site.gateway.db.fetchrow(
        "SELECT shortcode.*, receiver.number FROM shortcode JOIN receiver USING (receiver_id) "
        "WHERE merchant_id = $1 AND shortcode.env = $2 AND is_default",
        merchant_id,
        env,
    )
    return None if row is None else dict(row)


async def test_checklist_leads_a_new_merchant_to_its_first_payment_and_disappears(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, page = await new_merchant(browser)
        assert checklist(page) == {title: title == "Merchant" for title in STEPS}
        assert page.unbalanced_tags == []

        form = await browser.open(page.link(f"/credentials/{merchant_id}/edit"))
        assert form.unbalanced_tags == []
        page = await browser.submit(form, "/edit", **KEYS)
        assert "Sandbox credentials of shortcode 174379 stored." in page.words
        assert [title for title, is_done in checklist(page).items() if is_done] == STEPS[:2]

        page = await browser.submit(page, "/verify")
        assert page.url.partition("?")[0].endswith(f"/merchants/{merchant_id}")
        assert "Credentials valid: M-Pesa returned an access token" in page.words
        assert "the first payment shows if passkey and shortcode are right" in page.words
        assert checklist(page)["Verified by M-Pesa"]

        form = await browser.open(page.link("/webhook"))
        page = await browser.submit(form, "/webhook", webhook_url=ops_site.receiver.url)
        assert re.search(r"whsec_[\w+/]+", page.text)
        assert not re.search(r"whsec_[\w+/]+", (await browser.open(page.url)).text)
        assert checklist(page)["Webhook"]

        page = await browser.submit(page, "/test")
        assert "Test event delivered: HTTP 200" in page.words
        assert checklist(page)["Test event"]

        page = await browser.open(page.link("?new=key#keys-of"))
        page = await browser.submit(page, merchant_id, name="Web shop", scopes=["payments:write"], env="sandbox")
        assert checklist(page)["API key"]

        form = await browser.open(page.link("/payment"))
        first = await browser.submit(form, "/payment", phone="0711000001", amount="10")
        again = await browser.submit(form, "/payment", phone="0711000001", amount="10")
        assert "The payer's phone shows the prompt now." in first.words
        assert "This form was sent before: its payment is here." in again.words
        assert first.url.partition("?")[0] == again.url.partition("?")[0]

        async def paid() -> bool:
            sql = "SELECT status = 'completed' FROM payment WHERE merchant_id = $1"
            return bool(await ops_site.gateway.db.fetchval(sql, merchant_id))

        assert await eventually(paid)
        assert checklist(await browser.open(f"/merchants/{merchant_id}")) == {}
    acts = [act for act, _ in await ops_site.acted()]
    assert acts[::-1] == [
        "ops.create_merchant",
        "credentials.store",
        "credentials.verify",
        "webhooks.set",
        "webhooks.test",
        "ops.create_key",
        *["payments.create"] * 2,
    ]


async def test_checklist_shows_steps_without_buttons_to_a_viewer(ops_site: OpsSite) -> None:
    async with ops_site.browser() as admin, ops_site.browser(Role.VIEWER) as viewer:
        merchant_id, page = await new_merchant(admin)
        seen = await viewer.open(f"/merchants/{merchant_id}")
        assert list(checklist(seen)) == STEPS
        assert not any("/edit" in link or "/webhook" in link for link in seen.links if merchant_id in link)
        token = page.field("form_token")
        for path in (
            f"/credentials/{merchant_id}/edit",
            f"/credentials/{merchant_id}/retire",
            f"/merchants/{merchant_id}/webhook",
            f"/merchants/{merchant_id}/payment",
        ):
            assert (await viewer.send(path, {"form_token": token})).status == 403
            assert (await viewer.open(path)).status in {200, 403}
            # A form without the session's token is another site's.
            assert (await admin.send(path, {"form_token": "0" * 64})).status == 403


async def test_pages_offer_the_active_merchants_however_many_newer_ones_are_deactivated(ops_site: OpsSite) -> None:
    merchants, db = ops_site.gateway.merchants, ops_site.gateway.db
    newer = [(await merchants.create(f"Closed {number}", actor="test")).merchant_id for number in range(201)]
    await db.execute("UPDATE merchant SET is_active = false WHERE merchant_id <> $1", ops_site.merchant_id)
    assert [each.merchant_id for each in await merchants.active(2)] == [ops_site.merchant_id]
    offer = f'<option value="{ops_site.merchant_id}"'
    async with ops_site.browser() as browser:
        overview = await browser.open("/")
        assert "No merchant can be paid yet" not in overview.words
        assert set(checklist(overview)) == set(STEPS)

        second = await merchants.create("Second shop", actor="test")
        overview = await browser.open("/")
        assert (checklist(overview), "No merchant can be paid yet" in overview.words) == ({}, False)
        for path in ("/reconciliation", "/refunds", "/events", "/webhooks/deliveries"):
            page = await browser.open(path)
            assert (offer in page.text, "Closed" in page.text) == (True, False), path
        chosen = await browser.open(f"/refunds?merchant={newer[0]}")
        assert f'<option value="{newer[0]}" selected' in chosen.text
        assert offer in chosen.text

        for merchant_id in (ops_site.merchant_id, second.merchant_id):
            await merchants.deactivate(merchant_id, actor="test")
        assert await merchants.active(2) == []
        assert "No merchant can be paid yet" in (await browser.open("/")).words


async def test_checklist_asks_to_verify_again_when_the_keys_change_or_are_refused(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, _ = await new_merchant(browser)
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        page = await browser.submit(await browser.submit(form, "/edit", **KEYS), "/verify")
        assert checklist(page)["Verified by M-Pesa"]
        page = await browser.submit(form, "/edit", **(KEYS | {"consumer_key": "another-consumer-key"}))
        assert not checklist(page)["Verified by M-Pesa"]
        page = await browser.submit(page, "/verify")
        assert checklist(page)["Verified by M-Pesa"]
        fault = {"operation": "oauth", "fault": "400.008.01"}
        assert (await ops_site.api.call("POST", "/simulator/control/faults", fault)).status == 200
        page = await browser.submit(await browser.open(f"/credentials/{merchant_id}"), "/verify")
        assert "Credentials rejected:" in page.words
        assert not checklist(await browser.open(f"/merchants/{merchant_id}"))["Verified by M-Pesa"]


# -- credentials ------------------------------------------------------------------------------------------------------


async def test_credentials_form_shows_each_problem_at_its_field_and_no_secret(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, _ = await new_merchant(browser)
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        bad = await browser.submit(
            form,
            "/edit",
            **(KEYS | {"shortcode": "17", "passkey": "short", "till_number": "x", "nominated_number": "12"}),
        )
        assert bad.status == 422
        for name, message in (
            ("shortcode", "must be 5 to 7 digits"),
            ("till_number", "must be 5 to 7 digits"),
            ("passkey", "must be 8 to 1024 printable ASCII characters"),
            ("nominated_number", "Kenyan mobile number"),
        ):
            label = re.search(rf'<label>[^<]*<input name="{name}".*?</label>', bad.text, re.DOTALL)
            assert label is not None
            assert 'aria-invalid="true"' in label[0], name
            assert message in label[0], name
        for shown in ("Shortcode", "Till number", "Passkey", "Nominated number"):
            assert f"<p><strong>{shown}</strong>: " in bad.text, shown
        assert "mpesa." not in bad.words
        assert bad.field("shortcode") == "17"
        assert KEYS["consumer_key"] not in bad.text
        assert await stored(ops_site, merchant_id) is None


async def test_credentials_form_keeps_empty_secrets_of_the_same_shortcode_only(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, _ = await new_merchant(browser)
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        credential = "c2VjdXJpdHkgY3JlZGVudGlhbA=="
        await browser.submit(form, "/edit", **KEYS, initiator="testapi", security_credential=credential)
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        assert "kept: ****shop" in form.text
        assert not any(secret in form.text for secret in (*list(KEYS.values())[1:], credential))
        kept = await browser.submit(form, "/edit", account_reference="SHOP", nominated_number="0708374149")
        assert kept.status == 200
        row = await stored(ops_site, merchant_id)
        assert row is not None
        assert (row["account_reference"], row["nominated_number"], row["initiator"]) == (
            "SHOP",
            "254708374149",
            "testapi",
        )
        reader_answer = await browser.submit(await browser.open(f"/credentials/{merchant_id}"), "/verify")
        assert "Credentials valid" in reader_answer.words
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        other = await browser.submit(form, "/edit", initiator="another")
        assert (other.status, "Initiator password: is required with initiator" in other.words) == (422, True)
        moved = await browser.submit(form, "/edit", shortcode="600000")
        assert moved.status == 422
        assert all(f"{label}: is required" in moved.words for label in ("Consumer key", "Passkey"))
        moved = await browser.submit(form, "/edit", **(KEYS | {"shortcode": "600000", "initiator": ""}))
        assert "Shortcode 174379 is retired: no new payments." in moved.words
        row = await stored(ops_site, merchant_id)
        assert row is not None
        assert (row["number"], row["security_credential"]) == ("600000", None)


async def test_credentials_page_retires_the_shortcode_after_confirmation(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        page = await browser.open(f"/credentials/{ops_site.merchant_id}")
        assert "tick the box" in (await browser.submit(page, "/retire")).words
        assert await stored(ops_site, ops_site.merchant_id)
        done = await browser.submit(page, "/retire", confirm=ops_site.merchant_id)
        assert "Shortcode 174379 is retired: no new payments. Nothing of it is open." in done.words
        assert await stored(ops_site, ops_site.merchant_id) is None


async def test_live_forms_need_a_confirmation_and_the_checks_of_the_api(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, _ = await new_merchant(browser)
        await browser.open("/live")
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        assert "LIVE" in form.words
        unconfirmed = await browser.submit(form, "/edit", **KEYS)
        assert (unconfirmed.status, "payments use these live keys at once" in unconfirmed.words) == (422, True)
        refused = await browser.submit(form, "/edit", **KEYS, confirm=merchant_id)
        # The same check as in PUT /v1/merchant/providers.
        assert "live needs the gateway's public_url to be https" in refused.words
        form = await browser.open(f"/merchants/{merchant_id}/webhook")
        address = "https://shop.example.co.ke/mpesa"
        assert "tick the box" in (await browser.submit(form, "/webhook", webhook_url=address)).words
        shown = await browser.submit(form, "/webhook", webhook_url=address, confirm=merchant_id)
        assert "Live webhook set to https://shop.example.co.ke/mpesa" in shown.words
        form = await browser.open(f"/merchants/{merchant_id}")
        key = {"name": "Web", "scopes": ["payments:read"]}
        assert "a live key moves real money" in (await browser.submit(form, merchant_id, **key)).words
        made = await browser.submit(form, merchant_id, **key, confirm=merchant_id)
        assert re.search(r"sk_live_[0-9a-z]{48}", made.text)
        form = await browser.open(f"/merchants/{merchant_id}/payment")
        assert "real money" in (await browser.submit(form, "/payment", phone="0711000001", amount="1")).words
    assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM payment") == 0


# -- webhook ----------------------------------------------------------------------------------------------------------


async def test_webhook_form_changes_address_and_event_types(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        form = await browser.open(f"/merchants/{ops_site.merchant_id}/webhook")
        bad = await browser.submit(form, "/webhook", webhook_url="ftp://shop.example")
        assert (bad.status, bad.field("webhook_url")) == (422, "ftp://shop.example")
        assert re.search(r'name="webhook_url"[^>]*aria-invalid="true"', bad.text)
        none = await browser.submit(form, "/webhook", event_types=[])
        assert "choose at least one of " in none.words
        kept = await browser.submit(form, "/webhook", event_types=["payment.completed"])
        assert "Event types stored. The address and its secret stay." in kept.words
        assert "whsec_" not in kept.text
        view = (await ops_site.api.call("GET", "/v1/merchant/webhook")).data
        assert view["event_types"] == ["payment.completed"]
        form = await browser.open(f"/merchants/{ops_site.merchant_id}/webhook")
        assert form.form("/webhook").fields["event_types"] == ["payment.completed"]
        moved = await browser.submit(form, "/webhook", webhook_url=f"{ops_site.receiver.url}/second")
        assert re.search(r"whsec_[\w+/]+", moved.text)
        assert not checklist(moved)["Test event"]
        removed = await browser.submit(
            await browser.open(f"/merchants/{ops_site.merchant_id}/webhook"), "/remove", confirm=ops_site.merchant_id
        )
        assert "Sandbox webhook removed: events wait." in removed.words


async def test_payment_form_with_a_wrong_passkey_shows_the_failed_payment(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, _ = await new_merchant(browser)
        form = await browser.open(f"/credentials/{merchant_id}/edit")
        await browser.submit(form, "/edit", **(KEYS | {"passkey": "passkey-of-another-shortcode"}))
        form = await browser.open(f"/merchants/{merchant_id}/payment")
        shown = await browser.submit(form, "/payment", phone="0711000001", amount="10")
        assert "/payments/pay_" in shown.url
        assert "M-Pesa refused:" in shown.words
        assert "The customer can be asked again" in shown.words
        assert not checklist(await browser.open(f"/merchants/{merchant_id}"))["First payment"]


@pytest.mark.parametrize(("amount", "phone", "field"), [("0", "0711000001", "amount"), ("10", "12", "phone")])
async def test_payment_form_shows_the_problem_and_sends_nothing(
    ops_site: OpsSite, amount: str, phone: str, field: str
) -> None:
    async with ops_site.browser() as browser:
        form = await browser.open(f"/merchants/{ops_site.merchant_id}/payment")
        bad = await browser.submit(form, "/payment", amount=amount, phone=phone)
        assert bad.status == 422
        assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', bad.text)
        assert bad.field("key") == form.field("key")
    assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM payment") == 0


async def test_payment_form_names_the_person_in_timeline_and_audit(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        form = await browser.open(f"/merchants/{ops_site.merchant_id}/payment")
        await browser.submit(form, "/payment", phone="0711000001", amount="10")
        shown = await browser.submit(form, "/payment", phone="0711000001", amount="10")
        assert "payment, by amina" in shown.words
        payment_id = shown.url.partition("?")[0].rpartition("/")[2]
        await browser.open(f"/payments/export?merchant={ops_site.merchant_id}&search=INV&min_amount=5")
    entries = (await ops_site.gateway.audit.page(100, None, None, None)).rows
    made = [entry for entry in entries if entry.action == "payment.requested"]
    assert [(entry.subject_id, entry.merchant_id) for entry in made] == [(payment_id, ops_site.merchant_id)]
    assert made[0].detail.items() >= {"amount": 10, "currency": "KES", "env": "sandbox"}.items()
    assert made[0].actor.startswith("person:")
    (exported,) = [entry for entry in entries if entry.action == "payments.exported"]
    assert exported.detail["filters"] == {"merchant": ops_site.merchant_id, "search": "INV", "min_amount": "5"}


async def test_payment_and_verify_without_credentials_name_the_form(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, page = await new_merchant(browser)
        token = page.field("form_token")
        form = await browser.open(f"/merchants/{merchant_id}/payment")
        asked = await browser.submit(form, "/payment", phone="0711000001", amount="10")
        verified = await browser.send(f"/credentials/{merchant_id}/verify", {"form_token": token})
        for shown in (asked, verified):
            assert "no sandbox M-Pesa credentials are stored: enter them in the form M-Pesa credentials" in shown.words
            assert "PUT /v1" not in shown.words
        keyless = await browser.submit(form, "/payment", phone="0711000001", amount="10", key="")
        assert (keyless.status, "nothing was sent, send it again" in keyless.words) == (422, True)
        assert "Idempotency-Key header" not in keyless.words
        assert keyless.field("key").startswith("ops-")


async def test_api_key_with_a_past_expiry_is_refused_on_the_page(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        form = await browser.open(f"/merchants/{ops_site.merchant_id}")
        key = {"name": "Dead", "scopes": ["payments:read"], "env": "sandbox", "expires_at": "2020-01-01"}
        refused = await browser.submit(form, ops_site.merchant_id, **key)
        assert (refused.status, "must be in the future" in refused.words) == (422, True)
    assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM api_key WHERE name = 'Dead'") == 0


# -- deactivated merchants --------------------------------------------------------------------------------------------


async def test_forms_of_a_deactivated_merchant_are_refused_and_ask_no_payer(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        merchant_id, _ = await new_merchant(browser, "Gone")
        await browser.submit(await browser.open(f"/credentials/{merchant_id}/edit"), "/edit", **KEYS)
        forms = [
            (await browser.open(f"/credentials/{merchant_id}/edit"), "/edit", KEYS | {"passkey": "another-passkey"}),
            (
                await browser.open(f"/merchants/{merchant_id}/webhook"),
                "/webhook",
                {"webhook_url": ops_site.receiver.url},
            ),
            (
                await browser.open(f"/merchants/{merchant_id}/payment"),
                "/payment",
                {"phone": "254700000000", "amount": "7"},
            ),
            (await browser.open(f"/merchants/{merchant_id}"), merchant_id, {"name": "Late", "env": "sandbox"}),
        ]
        before = await stored(ops_site, merchant_id)
        await ops_site.gateway.merchants.deactivate(merchant_id, actor="test")
        for form, action, values in forms:
            refused = await browser.submit(form, action, **values)
            assert (refused.status, "merchant is deactivated" in refused.words) == (409, True), action
            if action != merchant_id:
                assert (await browser.open(form.url.partition("?")[0].removeprefix(ops_site.url))).status == 409, action
        for table in ("payment", "webhook_endpoint", "api_key"):
            sql = f"SELECT count(*) FROM {table} WHERE merchant_id = $1"  # noqa: S608 - the names above
            assert await ops_site.gateway.db.fetchval(sql, merchant_id) == 0, table
        assert await stored(ops_site, merchant_id) == before
