"""The pages about reconciliation: runs and their findings, and what a person resolves that no rule can."""

import re
from datetime import UTC, datetime
from typing import Any

from mpesa_gateway.pages import Role
from mpesa_gateway_reconciliation.agreement import gaps_of
from tests.browsing import Browser, Page
from tests.plugins.ops.conftest import Desk


def lines(page: Page) -> list[str]:
    """The statement lines that a page lists."""
    return re.findall(r'href="[^"]*lines/(txn_\w{26})"', page.text)


async def somebody_pays(desk: Desk, amount: int, reference: str = "WALKIN", phone: str = "254799000111") -> str:
    """Money that nobody asked for through us; gives its receipt."""
    body = {"phone": phone, "amount": amount, "shortcode": "174379", "reference": reference}
    answer = await desk.api.call("POST", "/simulator/control/ledger", body)
    return str(answer.data["receipt"])


async def registered(desk: Desk) -> None:
    """Pull is enabled for the shop's shortcode."""
    assert (await desk.api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200


async def reconciled(desk: Desk, browser: Browser, **filled: Any) -> Page:
    """Read the statement from the page."""
    page = await browser.opens("/reconciliation")
    return await browser.submits(page, "/reconciliation", merchant=desk.merchant_id, **filled)


async def test_a_statement_is_read_from_the_page_and_its_findings_shown(desk: Desk) -> None:
    silent = (await desk.api.pay("254700000007", key="silent")).data
    await somebody_pays(desk, 4321)
    async with desk.browser(Role.OPERATOR) as browser:
        assert "No statements read yet" in (await browser.opens("/reconciliation")).words
        bad = await reconciled(desk, browser, start="2020-01-01T00:00:00Z")
        assert (bad.status, "start: must be within the last 48 hours" in bad.words) == (422, True)
        assert bad.field("start") == "2020-01-01T00:00:00Z"
        unregistered = await reconciled(desk, browser)
        assert "Run failed." in unregistered.words
        assert "the last statement run of 1 merchant failed" in (await browser.opens()).words
        await registered(desk)
        run = await reconciled(desk, browser)
        assert "Run completed." in run.words
        assert "statement run of" not in (await browser.opens()).words
        assert "1 page, 2 lines" in run.words
        assert run.untidy == []
        assert len(lines(run)) == 2
        recovered = await browser.opens(run.url.partition("?")[0] + "?finding=recovered")
        assert len(lines(recovered)) == 1
        assert recovered.link(f"/payments/{silent['id']}")
        listing = await browser.opens("/reconciliation")
        assert "1 unresolved line" in listing.words
        assert "known or recovered 1, unexplained 1" in listing.text
        assert listing.untidy == []
        payment = await browser.opens(f"/payments/{silent['id']}")
        assert "recovered Receipt" in payment.words
    assert (await desk.acted())[0][0] == "reconciliation.run"


async def test_money_of_nobodys_is_set_aside_with_a_reason_and_left_alone(desk: Desk) -> None:
    await registered(desk)
    await somebody_pays(desk, 100)
    await somebody_pays(desk, 200)
    async with desk.browser(Role.OPERATOR) as browser:
        await reconciled(desk, browser)
        assert "2 statement lines without a payment" in (await browser.opens()).words
        listing = await browser.opens("/reconciliation/lines")
        assert len(lines(listing)) == 2
        line_id = lines(listing)[0]
        page = await browser.opens(f"/reconciliation/lines/{line_id}")
        assert page.untidy == []
        token = page.field("form_token")
        empty = await browser.sends(f"/reconciliation/lines/{line_id}", {"form_token": token})
        assert (empty.status, "reason: say in a few words" in empty.words) == (422, True)
        filled = {"form_token": token, "reason": "Paid at the till"}
        told = await browser.sends(f"/reconciliation/lines/{line_id}", filled)
        assert "Dismissed. Later runs skip this line." in told.words
        assert "Paid at the till" in told.words
        again = await browser.sends(f"/reconciliation/lines/{line_id}", filled)
        assert (again.status, "set aside before" in again.words) == (409, True)
        run = await reconciled(desk, browser)
        assert "not found dismissed" in run.words
        left = lines(await browser.opens("/reconciliation/lines?finding=not_found"))
        assert len(left) == 1
        assert left[0] != line_id
        told = await browser.submits(run, run.url.partition("?")[0].rpartition("/")[2], reason="All at the till")
        assert "1 line dismissed." in told.words
        front = (await browser.opens()).words
        assert "without a payment" not in front
        assert "explained Test shop, shortcode 174379: statement KES 300, gateway KES 0" in front
        assert "2 dismissed lines, KES 300" in front
    row = await desk.gateway.db.fetchrow("SELECT * FROM noted_line WHERE line_id = $1", line_id)
    assert row is not None
    assert row["set_aside_by"].startswith("operator:opr_")
    entries = (await desk.gateway.audit.page(10, None, "statement_line.set_aside", None)).rows
    assert [(entry.subject_id, entry.detail["finding"]) for entry in entries] == [(line_id, "not_found")]


async def test_an_ambiguous_line_is_assigned_to_one_of_the_payments_that_it_fits(desk: Desk) -> None:
    await registered(desk)
    assert (await desk.api.call("PATCH", "/simulator/control/habits", {"transactionstatus": "never"})).status == 200
    made = [
        (await desk.api.pay("254700000006", 77, key=key, reference="ONE-SHOP")).data["id"]
        for key in ("first", "second")
    ]
    await somebody_pays(desk, 77, "ONE-SHOP", "254700000006")
    async with desk.browser(Role.OPERATOR) as browser:
        await reconciled(desk, browser)
        front = await browser.opens()
        assert "1 statement line to match manually" in front.words
        (line_id,) = lines(await browser.opens("/reconciliation/lines?finding=ambiguous"))
        page = await browser.opens(f"/reconciliation/lines/{line_id}")
        assert sorted(link.rpartition("=")[2] for link in page.links if "/match?" in link) == sorted(made)
        unknown = await browser.opens(f"/reconciliation/lines/{line_id}/match?payment_id=pay_none")
        assert unknown.status == 404
        compared = await browser.opens(page.link(f"/match?payment_id={made[1]}"))
        assert "Amount KES 77 KES 77" in compared.words
        assert ("differs" in compared.words, "A match cannot be undone" in compared.words) == (False, True)
        assert compared.untidy == []
        unsaid = await browser.submits(compared, "/match")
        assert (unsaid.status, "reason: say in a few words how you know" in unsaid.words) == (422, True)
        told = await browser.submits(compared, "/match", reason="She called")
        assert "Matched: recovered." in told.words
        assert "/match" not in told.text
        late = await browser.sends(
            f"/reconciliation/lines/{line_id}/match",
            {"form_token": page.field("form_token"), "payment_id": made[0], "reason": "Late"},
        )
        assert (late.status, "belongs to a payment already" in late.words) == (409, True)
    assert (await desk.api.call("GET", f"/v1/payments/{made[1]}")).data["status"] == "completed"
    entry = (await desk.gateway.audit.page(1, None, "statement_line.assigned", None)).rows[0]
    assert entry.detail["reason"] == "She called"


async def test_match_with_another_amount_needs_the_amount_typed_and_is_shown_as_a_warning(desk: Desk) -> None:
    await registered(desk)
    made = (await desk.api.pay("254700000001", 110, key="cancelled", reference="ORDER7")).data
    await desk.api.settled(made["id"], "failed")
    await somebody_pays(desk, 700, "ORDER7", "254700000001")
    async with desk.browser(Role.OPERATOR) as browser:
        await reconciled(desk, browser)
        (line_id,) = lines(await browser.opens("/reconciliation/lines"))
        page = await browser.opens(f"/reconciliation/lines/{line_id}")
        compared = await browser.opens(page.link(f"/match?payment_id={made['id']}"))
        assert "Amount differs KES 700 KES 110" in compared.words
        assert "payment.mismatched" in compared.words
        for typed in ("", "110"):
            refused = await browser.submits(compared, "/match", reason="Paid too much", confirm=typed)
            assert (refused.status, "type 700 to confirm" in refused.words) == (422, True)
            assert "Amount differs KES 700 KES 110" in refused.words
        assert (await desk.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"] is None
        told = await browser.submits(compared, "/match", reason="Paid too much", confirm="700")
        assert "Matched with a mismatch: the payment needs review" in told.words
        assert "data-warning" in told.text
    assert (await desk.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"]["of"] == "amount"


async def test_overview_compares_the_statements_of_today_with_the_gateway(desk: Desk) -> None:
    async with desk.browser(Role.OPERATOR) as browser:
        unread = (await browser.opens()).words
        assert ("not known Test shop: no statement of today has been read" in unread, "agrees" in unread) == (
            True,
            False,
        )
        await registered(desk)
        await desk.api.settled((await desk.api.pay("254711000001", 500, key="paid")).data["id"], "completed")
        await reconciled(desk, browser)
        both = (await browser.opens()).words
        assert "agrees Test shop, shortcode 174379: statement KES 500, gateway KES 500" in both
        assert re.search(r"\d\d:\d\d to \d\d:\d\d, read \d\d:\d\d EAT", both)
        await somebody_pays(desk, 700)
        await reconciled(desk, browser)
        more = (await browser.opens()).words
        assert "differs Test shop, shortcode 174379: statement KES 1,200, gateway KES 500" in more
        assert "1 statement line without a payment" in more
        totals = await browser.opens("/reconciliation/lines?finding=not_found")
        assert "1 line, KES 700 in total" in totals.words


def test_gaps_of_windows_are_the_times_that_none_covers() -> None:
    at = [datetime(2026, 11, 30, hour, tzinfo=UTC) for hour in range(8)]
    assert gaps_of([(at[0], at[2]), (at[1], at[3]), (at[3], at[4])]) == []
    assert gaps_of([(at[0], at[2]), (at[3], at[6]), (at[4], at[5]), (at[7], at[7])]) == [(at[2], at[3]), (at[6], at[7])]


async def test_pull_is_registered_from_the_page_of_the_credentials(desk: Desk) -> None:
    async with desk.browser(Role.OPERATOR) as browser:
        page = await browser.opens(f"/credentials/{desk.merchant_id}")
        assert "not registered" in page.words
        assert not page.has_form("/pull")
    async with desk.browser() as browser:
        page = await browser.opens(f"/credentials/{desk.merchant_id}")
        told = await browser.submits(page, "/pull")
        assert "Pull registered for 174379." in told.words
        assert "registered shortcode 174379 (sandbox)" in told.words
        for path in ("/reconciliation/run_00000000000000000000000000", "/reconciliation/lines/txn_0"):
            assert (await browser.opens(path)).status == 404
