"""Protects the pages of merchants, keys, credentials, events, audit and system."""

import re
from pathlib import Path
from typing import Any

import pytest

from mpesa_gateway.clock import SystemClock
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.plugin import Plugin, on_event
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.standalone.sample_credentials import make_certificate
from mpesa_gateway.testing.serving import Api, eventually, running_gateway
from mpesa_gateway_ops.people import People
from mpesa_gateway_payments.events import PaymentCompleted
from tests.browsing import PASSWORD, signed_in
from tests.identifiers import identifier
from tests.plugins.ops.conftest import OpsSite
from tests.stored import WIPE_SHORTCODES


async def test_merchant_page_creates_a_key_that_works_until_it_is_revoked(ops_site: OpsSite) -> None:
    base = ops_site.url.removesuffix("/ops")
    async with ops_site.browser() as browser:
        page = await browser.open("/merchants")
        nameless = await browser.submit(page, "/merchants", name="\u0007")
        assert (nameless.status, "Name: must be 1 to 100 printable characters" in nameless.words) == (422, True)
        shown = await browser.submit(page, "/merchants", name="Kilimani <Books>")
        assert "Merchant Kilimani <Books> created." in shown.words
        assert shown.unbalanced_tags == []
        merchant_id = shown.url.partition("?")[0].rpartition("/")[2]
        assert "No API keys." in shown.words
        wrong = await browser.submit(shown, merchant_id, name="", scopes=[], expires_at="soon")
        assert wrong.status == 422
        assert all(f"{field}:" in wrong.words for field in ("Name", "Scopes", "Expires"))
        made = await browser.submit(
            wrong, merchant_id, name="Web", scopes=["merchant:read"], env="sandbox", expires_at="2100-01-31"
        )
        found = re.search(r"sk_test_[0-9a-z]{48}", made.text)
        assert found is not None
        assert found[0] not in (await browser.open(made.url)).text
        api = Api(base, found[0])
        try:
            assert (await api.call("GET", "/v1/merchant/me")).data["name"] == "Kilimani <Books>"
            assert (await api.call("GET", "/v1/payments")).status == 403
            page = await browser.open(f"/merchants/{merchant_id}")
            assert (await browser.submit(page, "/revoke")).words.count("tick the box") == 1
            key_id = page.form("/revoke").choices["confirm"][0]
            assert " revoked." in (await browser.submit(page, "/revoke", confirm=key_id)).words
            assert (await api.call("GET", "/v1/merchant/me")).status == 401
        finally:
            await api.close()
        page = await browser.open(f"/merchants/{merchant_id}")
        assert not page.has_form("/revoke")
        deactivated = await browser.submit(page, "/deactivate", confirm=merchant_id)
        assert "deactivated: its keys are refused" in deactivated.words
        assert not deactivated.has_form(merchant_id)
        late = await browser.send(
            f"/merchants/{merchant_id}/deactivate", {"form_token": page.field("form_token"), "confirm": merchant_id}
        )
        assert "Not done: this merchant is not active." in late.words
    assert [act for act, _ in await ops_site.acted()][:3] == ["ops.deactivate", "ops.deactivate", "ops.revoke_key"]


async def test_merchant_page_for_an_operator_shows_keys_without_forms(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/merchants/{ops_site.merchant_id}")
        assert "payments:write" in page.words
        assert [form.action for form in page.forms if "merchants" in form.action] == []
        assert page.link(f"/credentials/{ops_site.merchant_id}")
        assert "new http://127.0.0.1" in page.words
        token = page.field("form_token")
        for path in (
            "/merchants",
            f"/merchants/{ops_site.merchant_id}",
            f"/merchants/{ops_site.merchant_id}/deactivate",
        ):
            assert (await browser.send(path, {"form_token": token})).status == 403
        assert (await browser.open("/merchants/mer_00000000000000000000000000")).status == 404


async def test_credentials_page_shows_and_verifies_credentials(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/credentials")
        assert "not cached" in page.words
        assert "missing live daraja.live_certificate" in page.words
        assert page.unbalanced_tags == []
        shown = await browser.open(page.link(f"/credentials/{ops_site.merchant_id}"))
        assert "consumer secret ****ests" in shown.words
        assert "consumer-secret-of-tests" not in shown.text
        answer = await browser.submit(shown, "/verify")
        assert "Credentials valid: M-Pesa returned an access token" in answer.words
        assert "valid cached until" in answer.words
        assert re.search(r"valid ?until \d", (await browser.open("/credentials")).words)
        fault = {"operation": "oauth", "fault": "400.008.01"}
        assert (await ops_site.api.call("POST", "/simulator/control/faults", fault)).status == 200
        assert "Credentials rejected:" in (await browser.submit(shown, "/verify")).words
        await ops_site.api.call("DELETE", "/v1/merchant/providers/mpesa")
        assert "Retired 174379" in (await browser.open(shown.url)).words
        await ops_site.gateway.db.execute(WIPE_SHORTCODES)
        await ops_site.gateway.merchants.set_envs(ops_site.merchant_id, [])
        assert "has no M-Pesa credentials" in (await browser.open(shown.url)).words


async def test_credentials_page_shows_the_expiry_of_the_certificate(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "sandbox.pem"
    path.write_bytes(make_certificate(SystemClock().now()))
    async with running_gateway(values) as (first, base):
        values["daraja"] = {"sandbox_url": f"{base}/simulator", "sandbox_certificate": str(path)}
        await first.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
    async with running_gateway(values) as (_, base), signed_in(f"{base}/ops") as browser:
        assert re.search(r"valid sandbox, until \d+ \w+ 20", (await browser.open("/credentials")).words)


async def test_events_page_filters_by_kind_and_shows_masked_bodies(ops_site: OpsSite) -> None:
    payment = await ops_site.api.settled((await ops_site.api.pay("254711000001", key="a")).data["id"], "completed")
    await ops_site.api.settled((await ops_site.api.pay("254700000001", key="b")).data["id"], "failed")
    async with ops_site.browser(Role.VIEWER) as browser:
        page = await browser.open("/events")
        assert page.words.count("payment.failed") >= 2
        page = await browser.open("/events?kind=payment.completed")
        (event_id,) = set(re.findall(r"events/(evt_\w{26})", page.text))
        shown = await browser.open(f"/events/{event_id}")
        assert shown.link(f"/payments/{payment['id']}")
        assert "2547****001" in shown.text
        assert "254711000001" not in shown.text
        assert shown.unbalanced_tags == []
        assert (await browser.open("/events/evt_00000000000000000000000000")).status == 404


is_broken = True


async def fail_while_broken(_: PaymentCompleted, __: Runtime) -> None:
    """A subscriber that fails while `is_broken` is set."""
    if is_broken:
        raise RuntimeError("no")


async def test_events_page_retries_a_failing_subscriber(values: dict[str, Any]) -> None:
    global is_broken  # noqa: PLW0603 - the subscriber is a function, as a host's are
    is_broken = True
    coping = Plugin(name="coping", summary="Copes.", subscribers=(on_event(PaymentCompleted, fail_while_broken),))
    async with running_gateway(values, plugins=(coping,)) as (gateway, base):
        await gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.OPERATOR, actor="test")
        merchant = await gateway.merchants.create("Shop", actor="test")
        event = PaymentCompleted(
            merchant_id=merchant.merchant_id,
            env="sandbox",
            subject_id=identifier("pay"),
            payment_id=identifier("pay"),
            amount="1.00",
            currency="KES",
            provider="mpesa",
            shortcode="174379",
            status="completed",
            phone="254711000001",
            reference="x",
            receipt=None,
            provider_ref=None,
            result_code=None,
            result_desc=None,
            failure_reason=None,
            metadata={},
            created_at="x",
            completed_at=None,
        )
        async with gateway.db.transaction():
            await gateway.outbox.publish([event])

        async def has_failed() -> bool:
            return bool(await gateway.db.fetchval("SELECT count(*) FROM event_task WHERE last_error IS NOT NULL"))

        assert await eventually(has_failed)
        await gateway.db.execute("UPDATE event_task SET attempts = 3, due_at = due_at + interval '1 hour'")
        async with signed_in(f"{base}/ops") as browser:
            assert "1 event with a failing subscriber" in (await browser.open()).words
            page = await browser.open("/events")
            assert "failing payment.completed" in page.words
            page = await browser.open(next(link for link in page.links if "/events/evt_" in link))
            assert "RuntimeError" in page.words
            is_broken = False
            assert "Retry queued." in (await browser.submit(page, "/wake")).words

            async def is_done() -> bool:
                return "done" in (await browser.open(page.url)).words

            assert await eventually(is_done)
            assert "already handled the event" in (await browser.submit(page, "/wake")).words


async def test_audit_page_filters_pages_and_verifies_the_chain(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/audit")
        assert "person.signed_in" in page.words
        assert "otieno per_" in page.words
        assert page.unbalanced_tags == []
        only = await browser.open("/audit?action=webhook.set")
        assert "webhook.set" in only.words
        assert "person.signed_in" not in only.words
        about = await browser.open(f"/audit?subject={ops_site.merchant_id}")
        assert "merchant.created" in about.words
        assert "No audit entry matches these filters." in (await browser.open("/audit?action=nothing")).words
        assert (await browser.open("/audit?cursor=x")).status == 422
        assert re.search(r"Chain verified: \d+ entries, none changed\.", (await browser.submit(page, "/verify")).words)
        for number in range(60):
            await ops_site.gateway.audit.record("test.noted", merchant_id=None, actor="test", detail={"number": number})
        page = await browser.open("/audit?action=test.noted")
        older = await browser.open(next(link for link in page.links if "cursor=" in link))
        assert "number: 59" in page.words
        assert "number: 0 " in older.words
    async with ops_site.browser(Role.VIEWER) as browser:
        assert not (await browser.open("/audit")).has_form("/verify")


async def test_system_page_shows_versions_and_settings_without_secrets(ops_site: OpsSite) -> None:
    master_key = ops_site.gateway.config.security.master_key
    assert isinstance(master_key, Secret)
    async with ops_site.browser(Role.VIEWER) as browser:
        page = await browser.open("/system")
        assert page.unbalanced_tags == []
        assert re.search(r"Postgres \d+\.\d", page.words)
        assert re.search(r"Valkey \d+\.\d", page.words)
        assert "idle_minutes = 60" in page.words
        assert "[simulator]" in page.words
        assert master_key.reveal() not in page.text
        url = ops_site.gateway.config.database.url
        assert url is not None
        assert url.reveal() not in page.text


@pytest.mark.parametrize("role", [Role.VIEWER, Role.ADMIN])
async def test_menu_pages_of_an_empty_gateway_open_and_link_to_our_own_pages(
    values: dict[str, Any], role: Role
) -> None:
    async with running_gateway(values) as (gateway, base):
        await gateway.services.get(People).create("amina@shop.example", PASSWORD, role=role, actor="test")
        async with signed_in(f"{base}/ops") as browser:
            front = await browser.open()
            assert "nothing needs attention" in front.words
            menu = [link for link in front.links if link.startswith(f"{base}/ops/")]
            assert len(menu) >= 12
            for link in menu:
                page = await browser.open(link)
                assert page.status == 200, link
                assert page.unbalanced_tags == [], link
                assert all(found.startswith(base) for found in page.links), link
                assert "style=" not in page.text, link
