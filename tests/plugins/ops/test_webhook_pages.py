"""Protects the webhook pages: deliveries, attempts, resends, endpoint health, secrets and test events."""

import re
from datetime import timedelta
from typing import Any

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import eventually
from tests.browsing import Page
from tests.plugins.ops.conftest import OpsSite


def delivery_ids(page: Page) -> list[str]:
    """Returns the ids of the deliveries on a page."""
    return re.findall(r'href="[^"]*deliveries/(dlv_\w{26})"', page.text)


async def delivered_payment(ops_site: OpsSite, key: str = "order") -> dict[str, Any]:
    """Returns a completed payment whose webhook has been attempted."""
    payment = await ops_site.api.settled((await ops_site.api.pay("254711000001", key=key)).data["id"], "completed")

    async def is_sent() -> bool:
        return bool(
            await ops_site.gateway.db.fetchval(
                "SELECT count(*) FROM delivery WHERE payment_id = $1 AND attempts > 0", payment["id"]
            )
        )

    assert await eventually(is_sent)
    return payment


async def test_delivery_page_shows_request_and_answer_and_resends(ops_site: OpsSite) -> None:
    payment = await delivered_payment(ops_site)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/webhooks/deliveries?status=delivered&event_type=payment.completed")
        (delivery_id,) = delivery_ids(page)
        assert page.unbalanced_tags == []
        assert delivery_ids(await browser.open("/webhooks/deliveries?status=dead")) == []
        shown = await browser.open(f"/webhooks/deliveries/{delivery_id}")
        assert "delivered HTTP 2" in shown.words
        assert "X-Payments-Signature" in shown.words
        assert "2547****001" in shown.text
        assert "254711000001" not in shown.text
        assert shown.unbalanced_tags == []
        again = await browser.submit(shown, "/resend")
        assert "Resend queued, with the same webhook-id." in again.words

        async def came_twice() -> bool:
            return len(ops_site.receiver.received) == 2

        assert await eventually(came_twice)
        assert len({one.headers["webhook-id"] for one in ops_site.receiver.received}) == 1
        page = await browser.open(f"/payments/{payment['id']}")
        assert re.search(r"delivered payment\.completed: HTTP 2\d\d \(2 attempts, last at \d\d:\d\d:\d\d\)", page.words)
        back = await browser.submit(page, f"{delivery_id}/resend")
        assert back.url.startswith(f"{ops_site.url}/payments/{payment['id']}?note=")
        event = await browser.open(shown.link("/events/" + page_event(shown)))
        assert delivery_ids(event) == [delivery_id]
    assert [act for act, _ in await ops_site.acted()] == ["webhooks.resend"] * 2


async def test_attempts_show_the_url_of_their_time(ops_site: OpsSite) -> None:
    payment = await delivered_payment(ops_site)
    old, host = ops_site.receiver.url, ops_site.receiver.url.split("/")[2]
    await ops_site.gateway.db.execute("UPDATE webhook_endpoint SET url = 'https://new.example.co.ke/hook'")
    async with ops_site.browser(Role.OPERATOR) as browser:
        (delivery_id,) = delivery_ids(await browser.open("/webhooks/deliveries"))
        shown = await browser.open(f"/webhooks/deliveries/{delivery_id}")
        assert f"POST {old}" in shown.words
        assert "new.example.co.ke" not in shown.words
        page = await browser.open(f"/payments/{payment['id']}")
        assert f"webhook to {host}" in page.words
        assert "new.example.co.ke" not in page.words
        # The next attempt uses the new URL; the previous one still shows its own.
        await ops_site.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = now() + interval '1 hour'")
        again = await browser.submit(shown, "/resend")
        assert "POST https://new.example.co.ke/hook" in again.words
        assert f"to {old}" in again.words


def page_event(page: Page) -> str:
    """Returns the event id of a delivery page."""
    found = re.search(r"evt_\w{26}", page.text)
    assert found is not None
    return found[0]


async def test_failing_endpoint_is_shown_and_its_deliveries_are_resent(ops_site: OpsSite) -> None:
    ops_site.receiver.status = 500
    await delivered_payment(ops_site, "one")
    await delivered_payment(ops_site, "two")
    await ops_site.gateway.db.execute("UPDATE webhook_endpoint SET failures = 3")
    await ops_site.gateway.db.execute("UPDATE delivery SET status = 'dead', due_at = NULL, leased_until = NULL")
    async with ops_site.browser(Role.OPERATOR) as browser:
        front = await browser.open()
        assert "1 failing webhook endpoint" in front.words
        assert "2 deliveries dead today after the last attempt" in front.words
        page = await browser.open("/webhooks")
        assert "failing" in page.words
        assert page.unbalanced_tags == []
        endpoint_id = next(iter(re.findall(r"whe_\w{26}", page.text)))
        shown = await browser.open(f"/webhooks/{endpoint_id}")
        assert re.search(r"Secret \*{4}", shown.words)
        assert not shown.has_form("/rotate")
        failed = await browser.submit(shown, "/test")
        assert "Test event not delivered: HTTP 500" in failed.words
        ops_site.receiver.status = 200
        assert "Test event delivered: HTTP 200" in (await browser.submit(shown, "/test")).words
        bad = await browser.submit(shown, endpoint_id, since="yesterday")
        assert (bad.status, "From: " in bad.words, bad.field("since")) == (422, True, "yesterday")
        since = rfc3339(ops_site.gateway.clock.now() - timedelta(hours=1))
        done = await browser.submit(bad, endpoint_id, since=since, status="dead")
        assert "2 deliveries queued again." in done.words

        async def are_delivered() -> bool:
            return len(delivery_ids(await browser.open("/webhooks/deliveries?status=delivered"))) == 2

        assert await eventually(are_delivered)


async def test_secret_rotated_by_an_admin_is_shown_once(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        page = await browser.open("/webhooks")
        page = await browser.open(next(link for link in page.links if "/webhooks/whe_" in link))
        unsure = await browser.submit(page, "/rotate")
        assert "confirm that the merchant will install" in unsure.words
        made = await browser.submit(page, "/rotate", confirm=page.form("/rotate").choices["confirm"][0])
        found = re.search(r"whsec_[A-Za-z0-9+/=]+", made.text)
        assert found is not None
        again = await browser.open(made.url)
        assert found[0] not in again.text
        assert "the previous secret also signs" in again.words
        assert found[0] not in str(await ops_site.gateway.db.fetch("SELECT * FROM ops_note"))


async def test_overview_shows_the_oldest_undelivered_webhook(ops_site: OpsSite) -> None:
    ops_site.receiver.status = 500
    await delivered_payment(ops_site)
    await ops_site.gateway.db.execute("UPDATE delivery SET created_at = created_at - interval '1 hour'")
    async with ops_site.browser(Role.VIEWER) as browser:
        front = await browser.open()
        assert "the oldest of 1 undelivered webhooks is 6" in front.words
        assert re.search(r"Undelivered 1 Oldest undelivered \d", front.words)
        page = await browser.open(front.link("/webhooks/deliveries?status=pending"))
        assert len(delivery_ids(page)) == 1
        assert not page.has_form("/resend")
