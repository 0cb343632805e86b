"""Protects the payment pages: filters, paging, export, status queries, review, and masked numbers for viewers."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import eventually, shop
from mpesa_gateway_payments.stats import PaymentStatsReader
from tests.browsing import Page
from tests.plugins.ops.conftest import OpsSite


def payment_ids(page: Page) -> list[str]:
    """Returns the ids of the payments on a page, in its order."""
    return re.findall(r'href="[^"]*payments/(pay_\w{26})"', page.text)


async def ended_payment(ops_site: OpsSite, phone: str = "254711000001", **more: Any) -> dict[str, Any]:
    """Returns a payment that has ended."""
    made = (await ops_site.api.pay(phone, **({"key": f"order-{phone}-{len(more)}"} | more))).data
    return await ops_site.api.settled(made["id"])


async def test_payment_list_is_newest_first_and_filters_without_script(ops_site: OpsSite) -> None:
    first = await ended_payment(ops_site, "254711000001", amount=100, key="a", reference="INV-1")
    second = await ended_payment(ops_site, "254700000001", amount=250, key="b")
    third = await ended_payment(ops_site, "254711000003", amount=5000, key="c")
    async with ops_site.browser() as browser:
        page = await browser.open("/payments")
        assert payment_ids(page) == [third["id"], second["id"], first["id"]]
        assert page.unbalanced_tags == []
        assert "KES 5,000" in page.words
        assert "cancelled by user" in page.words
        cases: tuple[tuple[dict[str, Any], list[dict[str, Any]]], ...] = (
            ({"status": "failed"}, [second]),
            ({"min_amount": "101", "max_amount": "4999"}, [second]),
            ({"reference": "INV-1"}, [first]),
            ({"search": third["receipt"]}, [third]),
            ({"search": first["receipt"].lower()}, [first]),
            ({"search": second["id"]}, [second]),
            ({"search": "b"}, [second]),
            ({"search": "0711000003"}, [third]),
            ({"phone": "+254 711 000 001"}, [first]),
            ({"since": "2020-01-01T00:00", "until": "2020-01-02"}, []),
            ({"search": "nothing like it"}, []),
        )
        for filled, expected in cases:
            shown = await browser.submit(page, "/payments/look", **filled)
            assert shown.status == 200, shown.words
            assert payment_ids(shown) == [payment["id"] for payment in expected], filled
            # The URL contains no phone number.
            assert not re.search(r"254711|0711", shown.url)
        # Forms and lists show East Africa Time; URLs use UTC, as the API does.
        early = await browser.submit(page, "/payments/look", since="2020-01-01T00:00")
        assert "since=2019-12-31T21%3A00%3A00.000000Z" in early.url
        assert early.field("since") == "2020-01-01T00:00:00"
        assert len(payment_ids(early)) == 3
        created = datetime.fromisoformat(third["created_at"]).astimezone(EAT).replace(tzinfo=None)
        later = await browser.submit(page, "/payments/look", since=(created + timedelta(seconds=1)).isoformat())
        assert payment_ids(later) == []
        total = await browser.open(next(link for link in early.links if "/payments/total?" in link))
        amount = sum(int(float(payment["amount"])) for payment in (first, second, third))
        assert total.words == f"3 payments, KES {amount:,} requested"
        nothing = await browser.open("/payments?search=nothing+like+it")
        assert "No payment matches these filters" in nothing.words
        assert "Search finds the first 3 characters of a reference" in nothing.words
        assert "its last 4 to 6 digits" in nothing.words
        assert (await browser.submit(nothing, "/payments/look", search="")).url == f"{ops_site.url}/payments"


async def test_payment_list_with_a_bad_filter_names_the_field(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        page = await browser.open("/payments")
        shown = await browser.submit(page, "/payments/look", phone="12")
        assert "Kenyan mobile number" in shown.words
        assert shown.url.startswith(f"{ops_site.url}/payments?note=")
        for query, word in (
            ("?since=yesterday", "From"),
            ("?min_amount=1.5", "Minimum, KES"),
            ("?status=paid", "Status"),
            ("?payer=abc", "Payer"),
            ("?cursor=abc", "Cursor"),
            ("?colour=red", "Colour"),
        ):
            answer = await browser.open(f"/payments{query}")
            assert answer.status == 200
            assert re.search(rf'role="alert">.*<strong>{word}</strong>', answer.text, re.DOTALL), query


async def test_payment_list_over_50_rows_is_paged_and_counts_new_rows(ops_site: OpsSite) -> None:
    made = [await ops_site.api.pay("254711000001", key=f"many-{number}") for number in range(53)]
    newest = [answer.data["id"] for answer in reversed(made)]
    async with ops_site.browser() as browser:
        page = await browser.open("/payments")
        assert payment_ids(page) == newest[:50]
        older = await browser.open(next(link for link in page.links if "cursor=" in link and "newer" not in link))
        assert payment_ids(older) == newest[50:]
        assert "hx-get" not in older.text
        newer = page.link(next(link for link in page.links if "/payments/newer?" in link))
        assert (await browser.open(newer)).text == ""
        await ops_site.api.pay("254711000001", key="one more")
        await ops_site.api.pay("254711000001", key="and another")
        answer = await browser.open(newer)
        assert "2 new \u2013 show" in answer.words
        shown = await browser.open(answer.links[0])
        assert payment_ids(shown)[2:] == newest[:48]


async def test_payment_list_filters_by_merchant(ops_site: OpsSite) -> None:
    ours = await ended_payment(ops_site, key="ours")
    base = ops_site.url.removesuffix("/ops")
    async with shop(ops_site.gateway, base) as other, ops_site.browser() as browser:
        theirs = (await other.pay("254711000009", key="theirs")).data
        page = await browser.open("/payments")
        assert payment_ids(page) == [theirs["id"], ours["id"]]
        assert page.words.count("Test shop") >= 4
        shown = await browser.submit(page, "/payments/look", merchant=ops_site.merchant_id)
        assert payment_ids(shown) == [ours["id"]]


async def test_payment_page_shows_the_timeline_and_queries_mpesa(ops_site: OpsSite) -> None:
    waiting = (await ops_site.api.pay("254700000020", key="waits", metadata={"cart": "<b>7</b>"})).data
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/payments/{waiting['id']}")
        assert page.status == 200
        assert page.unbalanced_tags == []
        assert "KES 500 pending" in page.words
        assert "requested Payment requested" in page.words
        assert "sent STK push accepted by M-Pesa" in page.words
        # Request and answer of the push are shown with masked numbers.
        request, answered_with = re.findall(r"<pre>(.*?)</pre>", page.text, re.DOTALL)
        assert [part in request for part in ("&#34;Amount&#34;: 500", "2547****020", waiting["reference"])] == [
            True
        ] * 3
        assert waiting["provider_ref"] in answered_with
        assert "254700000020" not in "".join(re.findall(r"<pre>(.*?)</pre>", page.text, re.DOTALL))
        assert "&lt;b&gt;7&lt;/b&gt;" in page.text
        answer = await browser.submit(page, "/query")
        assert "M-Pesa reports: still pending." in answer.words
        assert answer.url.startswith(f"{ops_site.url}/payments/{waiting['id']}?note=")
        changed = answer.link(next(link for link in answer.links if "/changed?at=" in link))
        assert (await browser.open(changed)).text == ""
        answered = await ops_site.api.call(
            "POST", f"/simulator/control/pushes/{waiting['provider_ref']}/answer", {"answer": "cancel"}
        )
        assert answered.status == 200
        await ops_site.api.settled(waiting["id"], "failed")
        assert "Updated, status failed" in (await browser.open(changed)).words
        page = await browser.open(f"/payments/{waiting['id']}")
        assert not page.has_form("/query")
        late = await browser.send(f"/payments/{waiting['id']}/query", {"form_token": page.field("form_token")})
        assert "Not done: only a pending or expired payment" in late.words
    assert await ops_site.acted() == [("payments.query", waiting["id"])] * 2


async def test_payment_page_status_query_shows_its_result(ops_site: OpsSite) -> None:
    payment = await ended_payment(ops_site)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/payments/{payment['id']}")
        answer = await browser.submit(page, "/check")
        assert "Status query sent." in answer.words

        async def answered() -> bool:
            return "M-Pesa reports Completed. Finding: already known." in (await browser.open(page.url)).words

        assert await eventually(answered)


async def test_payment_with_a_mismatch_needs_review_until_it_is_resolved(ops_site: OpsSite) -> None:
    made = (await ops_site.api.pay("254700000011", key="other amount")).data

    async def is_held() -> bool:
        found = (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data
        return found["mismatch"] is not None

    assert await eventually(is_held)
    async with ops_site.browser(Role.OPERATOR) as browser:
        front = await browser.open()
        assert "1 payment needs review: mismatched, or reversed by M-Pesa" in front.words
        page = await browser.open(front.link("/payments?held=true"))
        assert payment_ids(page) == [made["id"]]
        page = await browser.open(f"/payments/{made['id']}")
        assert "requested KES 500, reported KES 501" in page.words
        refused = await browser.submit(page, "/look-after", reason="x")
        assert "Reason: state what was done about it" in refused.words
        answer = await browser.submit(page, "/look-after", reason="Given back at the till")
        assert "resolved Marked as resolved: Given back at the till payment, by otieno" in answer.words
        assert not answer.has_form("/look-after")
        assert "needs review: mismatched" not in (await browser.open()).words
        again = await browser.send(
            f"/payments/{made['id']}/look-after", {"form_token": page.field("form_token"), "reason": "Once more"}
        )
        assert "does not need review" in again.words
    timeline = (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data["timeline"]
    assert (timeline[-1]["kind"], timeline[-1]["cause"]) == ("reviewed", "operator")


@pytest.mark.parametrize("amount", [20, 500])
async def test_payment_with_a_second_receipt_needs_review(ops_site: OpsSite, amount: int) -> None:
    payment = await ended_payment(ops_site)
    path = f"/simulator/control/pushes/{payment['provider_ref']}/forge"
    assert (await ops_site.api.call("POST", path, {"amount": amount})).data == {"status": 200}
    async with ops_site.browser(Role.OPERATOR) as browser:

        async def waiting() -> list[str]:
            return payment_ids(await browser.open("/payments?held=true"))

        assert await eventually(waiting) == [payment["id"]]
        assert "1 payment needs review: mismatched, or reversed by M-Pesa" in (await browser.open()).words
        page = await browser.open(f"/payments/{payment['id']}")
        assert f"reported KES {amount}, receipt" in page.words
        answer = await browser.submit(page, "/look-after", reason="Given back on the portal")
        assert "Marked as resolved: Given back on the portal" in answer.words
        assert await waiting() == []


async def test_payment_with_a_mismatch_needs_review_after_completion(ops_site: OpsSite) -> None:
    made = (await ops_site.api.pay("254700000020", key="held first")).data
    path = f"/simulator/control/pushes/{made['provider_ref']}"
    assert (await ops_site.api.call("POST", f"{path}/forge", {"amount": 501})).data == {"status": 200}

    async def is_held() -> bool:
        return (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"] is not None

    assert await eventually(is_held)
    assert (await ops_site.api.call("POST", f"{path}/answer", {"answer": "pay"})).status == 200
    paid_for = await ops_site.api.settled(made["id"])
    assert (paid_for["status"], paid_for["receipt"] == paid_for["mismatch"]["received_receipt"]) == ("completed", False)
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert payment_ids(await browser.open("/payments?held=true")) == [made["id"]]


async def test_payment_page_for_a_viewer_masks_numbers_and_has_no_forms(ops_site: OpsSite) -> None:
    payment = await ended_payment(ops_site, "254711000001")
    async with ops_site.browser(Role.VIEWER) as browser:
        listing, page = await browser.open("/payments"), await browser.open(f"/payments/{payment['id']}")
        for shown in (listing, page):
            assert "2547****001" in shown.words
            assert "254711000001" not in shown.text
        assert not page.has_form("/check")
        token = page.field("form_token")
        assert (await browser.send(f"/payments/{payment['id']}/check", {"form_token": token})).status == 403
        assert (await browser.open(f"/payments/export?merchant={ops_site.merchant_id}")).status == 403
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert "254711000001" in (await browser.open(f"/payments/{payment['id']}")).words


async def test_payment_export_is_the_filtered_list_as_csv(ops_site: OpsSite) -> None:
    payment = await ended_payment(ops_site, key="file", amount=321)
    await ended_payment(ops_site, "254700000001", key="other")
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/payments?status=completed")
        file = await browser.open(next(link for link in page.links if "/payments/export" in link))
        assert file.headers["Content-Type"].startswith("text/csv")
        head, *rows = file.text.strip().splitlines()
        assert head.startswith("id,env,amount")
        assert [row.split(",")[:2] for row in rows] == [[payment["id"], "sandbox"]]
        one = await browser.open(f"/payments/export?merchant={ops_site.merchant_id}&status=completed")
        assert one.text == file.text
        assert (await browser.open("/payments/export?merchant=mer_01jdk3v8rc4x9m2q7ztbn5wgae")).status == 404
    entries = (await ops_site.gateway.audit.page(2, None, "payments.exported", None)).rows
    assert [entry.merchant_id for entry in entries] == [ops_site.merchant_id, None]


async def test_payment_export_with_several_merchants_has_all_and_names_each(ops_site: OpsSite) -> None:
    payment = await ended_payment(ops_site, key="file", amount=321)
    async with shop(ops_site.gateway, ops_site.api.base, is_configured=False):
        async with ops_site.browser(Role.OPERATOR) as browser:
            page = await browser.open("/payments")
            file = await browser.open(next(link for link in page.links if "/payments/export" in link))
            head, row = file.text.strip().splitlines()
            assert head.endswith(",merchant_id")
            assert row.startswith(payment["id"])
            assert row.endswith(f",{ops_site.merchant_id}")
        async with ops_site.browser(Role.VIEWER) as browser:
            assert "/payments/export" not in (await browser.open("/payments")).text


@pytest.mark.parametrize(("text", "url_part"), [("id", "/payments/pay_"), ("receipt", "search="), ("phone", "payer=")])
async def test_search_by_id_receipt_or_phone_finds_the_payment(ops_site: OpsSite, text: str, url_part: str) -> None:
    payment = await ended_payment(ops_site, "254711000001")
    async with ops_site.browser() as browser:
        page = await browser.open()
        found = await browser.submit(page, "/find", text=f" {payment[text]} ")
        assert url_part in found.url
        assert payment["id"] in found.text
        assert "254711000001" not in found.url


async def test_payment_page_with_an_unknown_id_is_404(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        for path in ("/payments/pay_00000000000000000000000000", "/payments/x", "/payments/x/changed"):
            page = await browser.open(path)
            assert (page.status, "There is no such payment." in page.words) == (404, True)


async def test_payment_list_times_are_east_african_with_utc_as_title(ops_site: OpsSite) -> None:
    payment = await ended_payment(ops_site)
    row = await ops_site.gateway.db.fetchrow("SELECT created_at FROM payment WHERE payment_id = $1", payment["id"])
    assert row is not None
    local = row["created_at"] + timedelta(hours=3)
    async with ops_site.browser() as browser:
        page = await browser.open("/payments")
    assert f'title="{row["created_at"]:%Y-%m-%d %H:%M:%S} UTC">{local.day} {local:%b %H:%M:%S}</time>' in page.text


async def test_overview_shows_payment_figures(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.VIEWER) as browser:
        before = await browser.open("")
        assert "No payments in the last 60 days" in before.words
        await ended_payment(ops_site, "254711000001", amount=1200, key="a")
        await ended_payment(ops_site, "254711000002", amount=300, key="b")
        await ended_payment(ops_site, "254700000001", amount=50, key="c")
        await ops_site.gateway.services.get(PaymentStatsReader).count()
        page = await browser.open("")
        assert page.unbalanced_tags == []
        for words in (
            "KES 1,500 2 payments yesterday until",
            "the 7 days before: KES 0",
            "66.7 % of ended payments",
            "100 % of completed payments",
        ):
            assert words in page.words, page.words
        assert "cancelled by user 1" in page.words
        assert "Payments, last 24 hours" in page.words
        assert "real money only" not in page.words


async def test_ambiguous_answer_is_shown_until_an_operator_resolves_it(ops_site: OpsSite) -> None:
    gateway = ops_site.gateway
    ids = [gateway.ids.new("chk"), gateway.ids.new("chk", gateway.clock.now() - timedelta(days=400))]
    for check_id, receipt in zip(ids, ("UKA1B2C3D1", "UKA1B2C3D2"), strict=True):
        await gateway.db.execute(
            "INSERT INTO status_check (check_id, merchant_id, env, shortcode, receipt, state, finding, created_at, "
            "finished_at) VALUES ($1, $2, 'sandbox', '174379', $3, 'answered', 'ambiguous', now(), now())",
            check_id,
            ops_site.merchant_id,
            receipt,
        )
    async with ops_site.browser(Role.VIEWER) as browser:
        assert "2 ambiguous status answers need review" in (await browser.open("/")).words
        page = await browser.open("/payments/answers")
        assert [page.words.count(receipt) for receipt in ("UKA1B2C3D1", "UKA1B2C3D2")] == [1, 1]
        assert (page.unbalanced_tags, "What was done" in page.words) == ([], False)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/payments/answers")
        unclear = await browser.submit(page, "/payments/answers", note="x")
        assert (unclear.status, 'value="x"' in unclear.text) == (422, True)
        for check_id in ("nonsense", gateway.ids.new("chk"), gateway.ids.new("pay")):
            forged = {"form_token": page.field("form_token"), "check_id": check_id, "note": "Found on the portal"}
            assert (await browser.send("/payments/answers", forged)).status == 404
        done = await browser.submit(unclear, "/payments/answers", note="Found on the portal")
        assert "Marked as resolved." in done.words
        assert ("UKA1B2C3D1" in done.words, "UKA1B2C3D2" in done.words) == (False, True)
        assert "1 ambiguous status answer needs review" in (await browser.open("/")).words
        again = {"form_token": done.field("form_token"), "check_id": ids[0], "note": "Found on the portal"}
        assert (await browser.send("/payments/answers", again)).status == 409
