"""Protects the refund pages: confirmation, one refund per form, and review by an admin."""

import re
from typing import Any

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import eventually
from tests.browsing import Page
from tests.loose_money import receive_loose_at
from tests.plugins.ops.conftest import OpsSite


def refund_ids(page: Page) -> list[str]:
    """Returns the ids of the refunds on a page."""
    return re.findall(r'href="[^"]*refunds/(rfd_\w{26})"', page.text)


async def completed_payment(ops_site: OpsSite, key: str = "order") -> dict[str, Any]:
    """A completed payment of KES 500."""
    return await ops_site.api.settled((await ops_site.api.pay("254711000001", key=key)).data["id"], "completed")


async def test_refund_form_with_a_key_that_is_too_long_is_refused_without_a_refund(ops_site: OpsSite) -> None:
    payment = await completed_payment(ops_site)
    async with ops_site.browser(Role.OPERATOR) as browser:
        form = await browser.open(f"/payments/{payment['id']}/refund")
        filled = {"amount": "200", "reason": "Broken jug", "confirm": payment["id"]}
        for length, key in ((256, "k" * 256), (5000, "k" * 5000), (300, "\u00e9" * 300)):
            answer = await browser.submit(form, "/refund", **filled, key=key)
            assert 400 <= answer.status < 500, (length, answer.status)
        assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM refund") == 0
        assert "Refund requested." in (await browser.submit(form, "/refund", **filled, key="k" * 255)).words


async def test_refund_form_submitted_twice_creates_one_refund(ops_site: OpsSite) -> None:
    payment = await completed_payment(ops_site)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/payments/{payment['id']}")
        form = await browser.open(page.link("/refund"))
        assert "Refundable: KES 500." in form.words
        assert form.unbalanced_tags == []
        unsure = await browser.submit(form, "/refund", amount="200")
        assert (unsure.status, "Confirm: tick the box: a refund cannot be undone" in unsure.words) == (422, True)
        assert unsure.field("amount") == "200"
        filled = {"amount": "200", "reason": "Broken jug", "confirm": payment["id"]}
        wrong = await browser.submit(unsure, "/refund", **filled | {"amount": "2.50"})
        assert "Amount, KES: M-Pesa moves whole shillings only" in wrong.words
        assert wrong.field("reason") == "Broken jug"
        answer = await browser.submit(wrong, "/refund", **filled)
        assert "Refund requested." in answer.words
        again = await browser.submit(wrong, "/refund", **filled)
        assert again.url.partition("?")[0] == answer.url.partition("?")[0]

        async def is_back() -> bool:
            return "partially reversed" in (await browser.open(f"/payments/{payment['id']}")).words

        assert await eventually(is_back)
        page = await browser.open(f"/payments/{payment['id']}")
        assert "Refunded KES 200" in page.words
        assert refund_ids(page) == [answer.url.partition("?")[0].rpartition("/")[2]] * 3
        shown = await browser.open("/refunds?status=completed")
        assert refund_ids(shown) == [refund_ids(page)[0]]
        assert refund_ids(await browser.open("/refunds?status=failed")) == []
        ended = await browser.open(f"/refunds/{refund_ids(page)[0]}")
        assert "Broken jug" in ended.words
        assert "applied reversal: result 0" in ended.words
        assert ended.unbalanced_tags == []
        late = await browser.send(f"/refunds/{refund_ids(page)[0]}/query", {"form_token": page.field("form_token")})
        assert "Not done: this refund has ended." in late.words
    entry = (await ops_site.gateway.audit.page(1, None, "refund.requested", None)).rows[0]
    assert entry.actor.startswith("person:per_")


async def test_refund_form_of_a_failed_payment_is_refused_and_viewers_have_none(ops_site: OpsSite) -> None:
    failed = await ops_site.api.settled((await ops_site.api.pay("254700000001", key="fails")).data["id"], "failed")
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/payments/{failed['id']}/refund")
        assert "Not refundable: the payment is failed" in page.words
        refused = await browser.send(
            f"/payments/{failed['id']}/refund", {"form_token": page.field("form_token"), "confirm": failed["id"]}
        )
        assert (refused.status, "only a paid payment can be refunded" in refused.words) == (409, True)
        assert (await browser.open("/payments/pay_00000000000000000000000000/refund")).status == 404
    payment = await completed_payment(ops_site)
    async with ops_site.browser(Role.VIEWER) as browser:
        page = await browser.open(f"/payments/{payment['id']}")
        assert not [link for link in page.links if link.endswith("/refund")]
        assert (await browser.open(f"/payments/{payment['id']}/refund")).status == 403


async def test_refund_without_a_result_is_decided_by_an_admin(ops_site: OpsSite) -> None:
    assert (await ops_site.api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})).status == 200
    payment = await completed_payment(ops_site)
    made = (await ops_site.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})).data
    async with ops_site.browser(Role.OPERATOR) as browser:
        pending = (await browser.open(f"/refunds/{made['id']}")).words
        assert re.search(r"M-Pesa is (being asked now|asked again at \d\d:\d\d) what became of the reversal", pending)
        assert "Do not return this money in another way yet." in pending
    await ops_site.gateway.db.execute(
        "UPDATE refund SET attention = 'look on its portal', due_at = NULL WHERE refund_id = $1", made["id"]
    )
    async with ops_site.browser(Role.OPERATOR) as browser:
        front = await browser.open()
        assert "1 refund needs review" in front.words
        page = await browser.open(front.link("/refunds?waiting=true"))
        assert refund_ids(page) == [made["id"]]
        page = await browser.open(f"/refunds/{made['id']}")
        assert "Needs review: look on its portal." in page.words
        assert not page.has_form(f"/refunds/{made['id']}")
    async with ops_site.browser() as browser:
        page = await browser.open(f"/refunds/{made['id']}")
        undecided = await browser.submit(page, f"/refunds/{made['id']}", note="Saw it")
        assert (undecided.status, "choose completed or failed" in undecided.words) == (422, True)
        unsure = await browser.submit(undecided, f"/refunds/{made['id']}", outcome="failed", note="Saw it")
        assert "this cannot be undone" in unsure.words
        answer = await browser.submit(
            unsure, f"/refunds/{made['id']}", outcome="completed", note="Portal, 10:15", confirm=made["id"]
        )
        assert "Refund completed." in answer.words
        assert "refund needs review" not in (await browser.open()).words
    assert (await ops_site.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == "reversed"


async def test_transaction_refund_form_submitted_twice_creates_one_refund(ops_site: OpsSite) -> None:
    walk_in = {"phone": "254711000099", "amount": 500, "shortcode": "174379", "reference": "walk-in"}
    receipt = (await ops_site.api.call("POST", "/simulator/control/ledger", walk_in)).data["receipt"]
    money = await receive_loose_at(ops_site.gateway, receipt)
    async with ops_site.browser(Role.OPERATOR) as browser:
        path = f"/transactions/{money}/refund"
        form = await browser.open(path)
        assert "Refundable: KES 500." in form.words
        assert form.unbalanced_tags == []
        unsure = await browser.submit(form, path, amount="200")
        assert (unsure.status, "Confirm: tick the box: a refund cannot be undone" in unsure.words) == (422, True)
        answer = await browser.submit(unsure, path, amount="200", reason="Paid by mistake", confirm=money)
        assert "Refund requested." in answer.words
        assert (money in answer.text, answer.unbalanced_tags) == (True, [])
        again = await browser.submit(unsure, path, amount="200", reason="Paid by mistake", confirm=money)
        assert again.url.partition("?")[0] == answer.url.partition("?")[0]
        assert receipt in (await browser.open("/refunds")).words
        assert "Refundable: KES 300." in (await browser.open(path)).words


async def test_refund_form_of_money_that_cannot_be_refunded_states_why(ops_site: OpsSite) -> None:
    payment = await completed_payment(ops_site)
    sql = "SELECT transaction_id FROM transaction WHERE subject_id = $1"
    money = await ops_site.gateway.db.fetchval(sql, payment["id"])
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert (
            f"Not refundable: this transaction pays {payment['id']}"
            in (await browser.open(f"/transactions/{money}/refund")).words
        )
        assert (await browser.open("/transactions/txn_x/refund")).status == 404
