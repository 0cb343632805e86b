"""The pages about payments: every filter, what is found, what is done about one payment, and what nobody may read."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.pages import Role
from mpesa_gateway.testing.serving import eventually, shop
from mpesa_gateway_payments.tally import PaymentTally
from tests.browsing import Page
from tests.plugins.ops.conftest import Desk


def listed(page: Page) -> list[str]:
    """The payments that a page lists, in its order."""
    return re.findall(r'href="[^"]*payments/(pay_\w{26})"', page.text)


async def paid(desk: Desk, phone: str = "254711000001", **more: Any) -> dict[str, Any]:
    """A payment that has ended."""
    made = (await desk.api.pay(phone, **({"key": f"order-{phone}-{len(more)}"} | more))).data
    return await desk.api.settled(made["id"])


async def test_the_list_shows_newest_first_and_filters_without_a_script(desk: Desk) -> None:
    first = await paid(desk, "254711000001", amount=100, key="a", reference="INV-1")
    second = await paid(desk, "254700000001", amount=250, key="b")
    third = await paid(desk, "254711000003", amount=5000, key="c")
    async with desk.browser() as browser:
        page = await browser.opens("/payments")
        assert listed(page) == [third["id"], second["id"], first["id"]]
        assert page.untidy == []
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
            shown = await browser.submits(page, "/payments/look", **filled)
            assert shown.status == 200, shown.words
            assert listed(shown) == [payment["id"] for payment in expected], filled
            # What was looked for stands in the form again, and no phone number in the address.
            assert not re.search(r"254711|0711", shown.url)
        # The form's times are East Africa Time, as the list's; those of addresses are UTC, as the API's.
        early = await browser.submits(page, "/payments/look", since="2020-01-01T00:00")
        assert "since=2019-12-31T21%3A00%3A00.000000Z" in early.url
        assert early.field("since") == "2020-01-01T00:00:00"
        assert len(listed(early)) == 3
        created = datetime.fromisoformat(third["created_at"]).astimezone(EAT).replace(tzinfo=None)
        later = await browser.submits(page, "/payments/look", since=(created + timedelta(seconds=1)).isoformat())
        assert listed(later) == []
        total = await browser.opens(next(link for link in early.links if "/payments/total?" in link))
        amount = sum(int(float(payment["amount"])) for payment in (first, second, third))
        assert total.words == f"3 payments, KES {amount:,} requested"
        nothing = await browser.opens("/payments?search=nothing+like+it")
        assert "No payment matches these filters" in nothing.words
        assert (await browser.submits(nothing, "/payments/look", search="")).url == f"{desk.ops}/payments"


async def test_what_cannot_be_read_is_told_beside_the_form(desk: Desk) -> None:
    async with desk.browser() as browser:
        page = await browser.opens("/payments")
        shown = await browser.submits(page, "/payments/look", phone="12")
        assert "Kenyan mobile number" in shown.words
        assert shown.url.startswith(f"{desk.ops}/payments?note=")
        for query, word in (
            ("?since=yesterday", "since"),
            ("?min_amount=1.5", "min_amount"),
            ("?status=paid", "status"),
            ("?payer=abc", "payer"),
            ("?cursor=abc", "cursor"),
            ("?colour=red", "colour"),
        ):
            told = await browser.opens(f"/payments{query}")
            assert told.status == 200
            assert re.search(rf'role="alert">.*<strong>{word}</strong>', told.text, re.DOTALL), query


async def test_a_long_list_comes_in_pages_and_new_rows_are_counted_not_inserted(desk: Desk) -> None:
    made = [await desk.api.pay("254711000001", key=f"many-{number}") for number in range(53)]
    newest = [answer.data["id"] for answer in reversed(made)]
    async with desk.browser() as browser:
        page = await browser.opens("/payments")
        assert listed(page) == newest[:50]
        older = await browser.opens(next(link for link in page.links if "cursor=" in link and "newer" not in link))
        assert listed(older) == newest[50:]
        assert "hx-get" not in older.text
        newer = page.link(next(link for link in page.links if "/payments/newer?" in link))
        assert (await browser.opens(newer)).text == ""
        await desk.api.pay("254711000001", key="one more")
        await desk.api.pay("254711000001", key="and another")
        told = await browser.opens(newer)
        assert "2 new \u2013 show" in told.words
        shown = await browser.opens(told.links[0])
        assert listed(shown)[2:] == newest[:48]


async def test_payments_of_all_merchants_are_listed_and_those_of_one(desk: Desk) -> None:
    ours = await paid(desk, key="ours")
    base = desk.ops.removesuffix("/ops")
    async with shop(desk.gateway, base) as other, desk.browser() as browser:
        theirs = (await other.pay("254711000009", key="theirs")).data
        page = await browser.opens("/payments")
        assert listed(page) == [theirs["id"], ours["id"]]
        assert page.words.count("Test shop") >= 4
        shown = await browser.submits(page, "/payments/look", merchant=desk.merchant_id)
        assert listed(shown) == [ours["id"]]


async def test_a_payments_page_shows_its_past_and_asks_again(desk: Desk) -> None:
    waiting = (await desk.api.pay("254700000020", key="waits", metadata={"cart": "<b>7</b>"})).data
    async with desk.browser(Role.OPERATOR) as browser:
        page = await browser.opens(f"/payments/{waiting['id']}")
        assert page.status == 200
        assert page.untidy == []
        assert "KES 500 pending" in page.words
        assert "requested Payment requested" in page.words
        assert "sent STK push accepted by M-Pesa" in page.words
        # What was said at the push, on either side, without the payer's number.
        asked, answered_with = re.findall(r"<pre>(.*?)</pre>", page.text, re.DOTALL)
        assert [part in asked for part in ("&#34;Amount&#34;: 500", "2547****020", waiting["reference"])] == [True] * 3
        assert waiting["provider_ref"] in answered_with
        assert "254700000020" not in "".join(re.findall(r"<pre>(.*?)</pre>", page.text, re.DOTALL))
        assert "&lt;b&gt;7&lt;/b&gt;" in page.text
        told = await browser.submits(page, "/query")
        assert "M-Pesa reports: still pending." in told.words
        assert told.url.startswith(f"{desk.ops}/payments/{waiting['id']}?note=")
        changed = told.link(next(link for link in told.links if "/changed?at=" in link))
        assert (await browser.opens(changed)).text == ""
        answered = await desk.api.call(
            "POST", f"/simulator/control/pushes/{waiting['provider_ref']}/answer", {"answer": "cancel"}
        )
        assert answered.status == 200
        await desk.api.settled(waiting["id"], "failed")
        assert "Updated, status failed" in (await browser.opens(changed)).words
        page = await browser.opens(f"/payments/{waiting['id']}")
        assert not page.has_form("/query")
        late = await browser.sends(f"/payments/{waiting['id']}/query", {"form_token": page.field("form_token")})
        assert "Not done: only a pending or expired payment" in late.words
    assert await desk.acted() == [("payments.query", waiting["id"])] * 2


async def test_a_status_check_is_asked_for_and_its_answer_shown(desk: Desk) -> None:
    payment = await paid(desk)
    async with desk.browser(Role.OPERATOR) as browser:
        page = await browser.opens(f"/payments/{payment['id']}")
        told = await browser.submits(page, "/check")
        assert "Status query sent." in told.words

        async def answered() -> bool:
            return "M-Pesa reports Completed. Finding: already known." in (await browser.opens(page.url)).words

        assert await eventually(answered)


async def test_money_that_is_not_what_was_asked_for_waits_until_somebody_has_seen_to_it(desk: Desk) -> None:
    made = (await desk.api.pay("254700000011", key="other amount")).data

    async def is_held() -> bool:
        found = (await desk.api.call("GET", f"/v1/payments/{made['id']}")).data
        return found["mismatch"] is not None

    assert await eventually(is_held)
    async with desk.browser(Role.OPERATOR) as browser:
        front = await browser.opens()
        assert "1 payment needs review: mismatched, or reversed by M-Pesa" in front.words
        page = await browser.opens(front.link("/payments?held=true"))
        assert listed(page) == [made["id"]]
        page = await browser.opens(f"/payments/{made['id']}")
        assert "requested KES 500, reported KES 501" in page.words
        assert "reason: say in a few words" in (await browser.submits(page, "/look-after", reason="x")).words
        told = await browser.submits(page, "/look-after", reason="Given back at the till")
        assert "resolved Marked as resolved: Given back at the till" in told.words
        assert not told.has_form("/look-after")
        assert "needs review: mismatched" not in (await browser.opens()).words
        again = await browser.sends(
            f"/payments/{made['id']}/look-after", {"form_token": page.field("form_token"), "reason": "Once more"}
        )
        assert "does not wait for a person" in again.words
    timeline = (await desk.api.call("GET", f"/v1/payments/{made['id']}")).data["timeline"]
    assert (timeline[-1]["kind"], timeline[-1]["cause"]) == ("looked_after", "operator")


@pytest.mark.parametrize("amount", [20, 500])
async def test_a_second_receipt_for_a_paid_payment_waits_for_a_person_whatever_it_brought(
    desk: Desk, amount: int
) -> None:
    payment = await paid(desk)
    path = f"/simulator/control/pushes/{payment['provider_ref']}/forge"
    assert (await desk.api.call("POST", path, {"amount": amount})).data == {"status": 200}
    async with desk.browser(Role.OPERATOR) as browser:

        async def waiting() -> list[str]:
            return listed(await browser.opens("/payments?held=true"))

        assert await eventually(waiting) == [payment["id"]]
        assert "1 payment needs review: mismatched, or reversed by M-Pesa" in (await browser.opens()).words
        page = await browser.opens(f"/payments/{payment['id']}")
        assert f"reported KES {amount}, receipt" in page.words
        told = await browser.submits(page, "/look-after", reason="Given back on the portal")
        assert "Marked as resolved: Given back on the portal" in told.words
        assert await waiting() == []


async def test_a_held_payment_that_other_money_completes_still_waits_for_a_person(desk: Desk) -> None:
    made = (await desk.api.pay("254700000020", key="held first")).data
    path = f"/simulator/control/pushes/{made['provider_ref']}"
    assert (await desk.api.call("POST", f"{path}/forge", {"amount": 501})).data == {"status": 200}

    async def is_held() -> bool:
        return (await desk.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"] is not None

    assert await eventually(is_held)
    assert (await desk.api.call("POST", f"{path}/answer", {"answer": "pay"})).status == 200
    paid_for = await desk.api.settled(made["id"])
    assert (paid_for["status"], paid_for["receipt"] == paid_for["mismatch"]["received_receipt"]) == ("completed", False)
    async with desk.browser(Role.OPERATOR) as browser:
        assert listed(await browser.opens("/payments?held=true")) == [made["id"]]


async def test_who_only_looks_sees_no_whole_phone_number_and_no_buttons(desk: Desk) -> None:
    payment = await paid(desk, "254711000001")
    async with desk.browser(Role.VIEWER) as browser:
        listing, page = await browser.opens("/payments"), await browser.opens(f"/payments/{payment['id']}")
        for shown in (listing, page):
            assert "2547****001" in shown.words
            assert "254711000001" not in shown.text
        assert not page.has_form("/check")
        token = page.field("form_token")
        assert (await browser.sends(f"/payments/{payment['id']}/check", {"form_token": token})).status == 403
        assert (await browser.opens(f"/payments/export?merchant={desk.merchant_id}")).status == 403
    async with desk.browser(Role.OPERATOR) as browser:
        assert "254711000001" in (await browser.opens(f"/payments/{payment['id']}")).words


async def test_the_list_can_be_taken_away_as_a_file(desk: Desk) -> None:
    payment = await paid(desk, key="file", amount=321)
    await paid(desk, "254700000001", key="other")
    async with desk.browser(Role.OPERATOR) as browser:
        page = await browser.opens("/payments?status=completed")
        file = await browser.opens(next(link for link in page.links if "/payments/export?" in link))
        assert file.headers["Content-Type"].startswith("text/csv")
        head, *rows = file.text.strip().splitlines()
        assert head.startswith("id,env,amount")
        assert [row.split(",")[:2] for row in rows] == [[payment["id"], "sandbox"]]
        assert (await browser.opens("/payments/export")).status == 404
    entry = (await desk.gateway.audit.page(1, None, "payments.exported", None)).rows[0]
    assert entry.merchant_id == desk.merchant_id


@pytest.mark.parametrize(("text", "where"), [("id", "/payments/pay_"), ("receipt", "search="), ("phone", "payer=")])
async def test_the_search_on_every_page_leads_to_it(desk: Desk, text: str, where: str) -> None:
    payment = await paid(desk, "254711000001")
    async with desk.browser() as browser:
        page = await browser.opens()
        found = await browser.submits(page, "/find", text=f" {payment[text]} ")
        assert where in found.url
        assert payment["id"] in found.text
        assert "254711000001" not in found.url


async def test_there_is_no_such_payment(desk: Desk) -> None:
    async with desk.browser() as browser:
        for path in ("/payments/pay_00000000000000000000000000", "/payments/x", "/payments/x/changed"):
            page = await browser.opens(path)
            assert (page.status, "There is no such payment." in page.words) == (404, True)


async def test_times_are_east_african_and_utc_under_the_pointer(desk: Desk) -> None:
    payment = await paid(desk)
    row = await desk.gateway.db.fetchrow("SELECT created_at FROM payment WHERE payment_id = $1", payment["id"])
    assert row is not None
    local = row["created_at"] + timedelta(hours=3)
    async with desk.browser() as browser:
        page = await browser.opens("/payments")
    assert f'title="{row["created_at"]:%Y-%m-%d %H:%M:%S} UTC">{local.day} {local:%b %H:%M:%S}</time>' in page.text


async def test_the_overview_draws_how_payments_do(desk: Desk) -> None:
    async with desk.browser(Role.VIEWER) as browser:
        before = await browser.opens("")
        assert "No payments in the last 60 days" in before.words
        await paid(desk, "254711000001", amount=1200, key="a")
        await paid(desk, "254711000002", amount=300, key="b")
        await paid(desk, "254700000001", amount=50, key="c")
        await desk.gateway.services.get(PaymentTally).count()
        page = await browser.opens("")
        assert page.untidy == []
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
