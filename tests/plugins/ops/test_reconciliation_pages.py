"""Protects the reconciliation pages: runs, findings, manual matches and dismissed lines."""

import re
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.ops_contract import Role
from mpesa_gateway_payments.api import PaymentView
from mpesa_gateway_reconciliation.agreement import gaps_of
from mpesa_gateway_reconciliation.matching import Decided, require_confirmation
from tests.browsing import Browser, Page
from tests.plugins.ops.conftest import OpsSite


def line_ids(page: Page) -> list[str]:
    """Returns the ids of the statement lines on a page."""
    return re.findall(r'href="[^"]*lines/(txn_\w{26})"', page.text)


async def add_unrequested_payment(
    ops_site: OpsSite, amount: int, reference: str = "WALKIN", phone: str = "254799000111"
) -> str:
    """Add an unrequested payment to the simulator. Returns its receipt."""
    body = {"phone": phone, "amount": amount, "shortcode": "174379", "reference": reference}
    answer = await ops_site.api.call("POST", "/simulator/control/ledger", body)
    return str(answer.data["receipt"])


async def register_pull(ops_site: OpsSite) -> None:
    assert (await ops_site.api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200


async def reconcile(ops_site: OpsSite, browser: Browser, **filled: Any) -> Page:
    """Start a run from the page."""
    page = await browser.open("/reconciliation")
    return await browser.submit(page, "/reconciliation", merchant=ops_site.merchant_id, **filled)


async def test_reconciliation_page_starts_a_run_and_shows_its_findings(ops_site: OpsSite) -> None:
    silent = (await ops_site.api.pay("254700000007", key="silent")).data
    await add_unrequested_payment(ops_site, 4321)
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert "No statements read yet" in (await browser.open("/reconciliation")).words
        bad = await reconcile(ops_site, browser, start="2020-01-01T00:00:00Z")
        assert (bad.status, "From: must be within the last 48 hours" in bad.words) == (422, True)
        assert bad.field("start") == "2020-01-01T03:00:00"
        unregistered = await reconcile(ops_site, browser)
        assert "Run failed." in unregistered.words
        assert "the last statement run of 1 merchant failed" in (await browser.open()).words
        await register_pull(ops_site)
        run = await reconcile(ops_site, browser)
        assert "Run completed." in run.words
        assert "statement run of" not in (await browser.open()).words
        assert "1 page, 2 lines" in run.words
        assert run.unbalanced_tags == []
        assert len(line_ids(run)) == 2
        recovered = await browser.open(run.url.partition("?")[0] + "?finding=recovered")
        assert len(line_ids(recovered)) == 1
        assert recovered.link(f"/payments/{silent['id']}")
        listing = await browser.open("/reconciliation")
        assert "1 unresolved line" in listing.words
        assert "known or recovered 1, unexplained 1" in listing.text
        assert listing.unbalanced_tags == []
        payment = await browser.open(f"/payments/{silent['id']}")
        assert "recovered Receipt" in payment.words
    assert (await ops_site.acted())[0][0] == "reconciliation.run"


async def test_statement_line_dismissed_with_a_reason_is_skipped_by_later_runs(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    await add_unrequested_payment(ops_site, 100)
    await add_unrequested_payment(ops_site, 200)
    async with ops_site.browser(Role.OPERATOR) as browser:
        await reconcile(ops_site, browser)
        assert "2 statement lines without a payment" in (await browser.open()).words
        listing = await browser.open("/reconciliation/lines")
        assert len(line_ids(listing)) == 2
        line_id = line_ids(listing)[0]
        page = await browser.open(f"/reconciliation/lines/{line_id}")
        assert page.unbalanced_tags == []
        token = page.field("form_token")
        empty = await browser.send(f"/reconciliation/lines/{line_id}", {"form_token": token})
        assert (empty.status, "Reason: state what this money is" in empty.words) == (422, True)
        filled = {"form_token": token, "reason": "Paid at the till"}
        answer = await browser.send(f"/reconciliation/lines/{line_id}", filled)
        assert "Dismissed. Later runs skip this line." in answer.words
        assert re.search(r"Dismissed \S.* by (?!person:)\w.*: Paid at the till", answer.words)
        again = await browser.send(f"/reconciliation/lines/{line_id}", filled)
        assert (again.status, "is already dismissed" in again.words) == (409, True)
        run = await reconcile(ops_site, browser)
        assert "not found dismissed" in run.words
        left = line_ids(await browser.open("/reconciliation/lines?finding=not_found"))
        assert len(left) == 1
        assert left[0] != line_id
        answer = await browser.submit(run, run.url.partition("?")[0].rpartition("/")[2], reason="All at the till")
        assert "1 line dismissed." in answer.words
        front = (await browser.open()).words
        assert "without a payment" not in front
        assert "explained Test shop, shortcode 174379: statement KES 300, gateway KES 0" in front
        assert "2 dismissed lines, KES 300" in front
    row = await ops_site.gateway.db.fetchrow("SELECT * FROM noted_line WHERE line_id = $1", line_id)
    assert row is not None
    assert row["dismissed_by"].startswith("person:per_")
    entries = (await ops_site.gateway.audit.page(10, None, "statement_line.dismissed", None)).rows
    assert [(entry.subject_id, entry.detail["finding"]) for entry in entries] == [(line_id, "not_found")]


@pytest.mark.parametrize(
    "typed", ["0711000001", "0711 000 001", "+254 711 000 001", "254-711-000-001", "INV 0711000001"]
)
async def test_number_in_a_typed_reference_is_masked_by_role(ops_site: OpsSite, typed: str) -> None:
    await register_pull(ops_site)
    receipt = await add_unrequested_payment(ops_site, 4321, reference=typed)
    async with ops_site.browser(Role.OPERATOR) as browser:
        run = await reconcile(ops_site, browser)
        (line_id,) = line_ids(run)
        pages = {
            path: await browser.open(path) for path in ("/reconciliation/lines", f"/reconciliation/lines/{line_id}")
        }
        assert all(typed in page.words and receipt in page.text for page in pages.values())
    async with ops_site.browser(Role.VIEWER) as viewer:
        for path in (*pages, run.url):
            words = (await viewer.open(path)).words
            digits = re.sub(r"[^0-9]", "", words)
            assert ("711000001" in digits, typed in words, receipt in words) == (False, False, True), path


async def test_ambiguous_line_is_matched_to_one_of_its_candidates(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    assert (await ops_site.api.call("PATCH", "/simulator/control/habits", {"transactionstatus": "never"})).status == 200
    made = [
        (await ops_site.api.pay("254700000006", 77, key=key, reference="ONE-SHOP")).data["id"]
        for key in ("first", "second")
    ]
    await add_unrequested_payment(ops_site, 77, "ONE-SHOP", "254700000006")
    async with ops_site.browser(Role.OPERATOR) as browser:
        await reconcile(ops_site, browser)
        front = await browser.open()
        assert "1 statement line to match manually" in front.words
        (line_id,) = line_ids(await browser.open("/reconciliation/lines?finding=ambiguous"))
        page = await browser.open(f"/reconciliation/lines/{line_id}")
        assert sorted(link.rpartition("=")[2] for link in page.links if "/match?" in link) == sorted(made)
        unknown = await browser.open(f"/reconciliation/lines/{line_id}/match?payment_id=pay_none")
        assert unknown.status == 404
        compared = await browser.open(page.link(f"/match?payment_id={made[1]}"))
        assert "Amount KES 77 KES 77" in compared.words
        assert ("differs" in compared.words, "A match cannot be undone" in compared.words) == (False, True)
        assert compared.unbalanced_tags == []
        unsaid = await browser.submit(compared, "/match")
        assert (unsaid.status, "Evidence: state how you know" in unsaid.words) == (422, True)
        answer = await browser.submit(compared, "/match", reason="She called")
        assert "Matched: recovered." in answer.words
        assert "/match" not in answer.text
        late = await browser.send(
            f"/reconciliation/lines/{line_id}/match",
            {"form_token": page.field("form_token"), "payment_id": made[0], "reason": "Late"},
        )
        assert (late.status, "belongs to a payment already" in late.words) == (409, True)
    assert (await ops_site.api.call("GET", f"/v1/payments/{made[1]}")).data["status"] == "completed"
    entry = (await ops_site.gateway.audit.page(1, None, "statement_line.assigned", None)).rows[0]
    assert entry.detail["reason"] == "She called"


async def test_match_with_another_amount_needs_the_amount_typed_and_warns(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    made = (await ops_site.api.pay("254700000001", 110, key="cancelled", reference="ORDER7")).data
    await ops_site.api.settled(made["id"], "failed")
    await add_unrequested_payment(ops_site, 700, "ORDER7", "254700000001")
    async with ops_site.browser(Role.OPERATOR) as browser:
        await reconcile(ops_site, browser)
        (line_id,) = line_ids(await browser.open("/reconciliation/lines"))
        page = await browser.open(f"/reconciliation/lines/{line_id}")
        compared = await browser.open(page.link(f"/match?payment_id={made['id']}"))
        assert "Amount differs KES 700 KES 110" in compared.words
        assert "payment.mismatched" in compared.words
        for typed in ("", "110"):
            refused = await browser.submit(compared, "/match", reason="Paid too much", confirm=typed)
            assert (refused.status, "type 700 to confirm" in refused.words) == (422, True)
            assert "Amount differs KES 700 KES 110" in refused.words
        assert (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"] is None
        answer = await browser.submit(compared, "/match", reason="Paid too much", confirm="700")
        assert "Matched with a mismatch: the payment needs review" in answer.words
        assert "data-warning" in answer.text
    assert (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"]["of"] == "amount"


async def test_overview_compares_todays_statements_with_the_gateway(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        unread = (await browser.open()).words
        assert ("not known Test shop: no statement of today has been read" in unread, "agrees" in unread) == (
            True,
            False,
        )
        await register_pull(ops_site)
        await ops_site.api.settled((await ops_site.api.pay("254711000001", 500, key="paid")).data["id"], "completed")
        await reconcile(ops_site, browser)
        both = (await browser.open()).words
        assert "agrees Test shop, shortcode 174379: statement KES 500, gateway KES 500" in both
        assert re.search(r"\d\d:\d\d to \d\d:\d\d, read \d\d:\d\d EAT", both)
        await add_unrequested_payment(ops_site, 700)
        await reconcile(ops_site, browser)
        more = (await browser.open()).words
        assert "differs Test shop, shortcode 174379: statement KES 1,200, gateway KES 500" in more
        assert "1 statement line without a payment" in more
        totals = await browser.open("/reconciliation/lines?finding=not_found")
        assert "1 line, KES 700 in total" in totals.words


async def test_overview_with_more_merchants_than_compared_says_so(
    ops_site: OpsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert "older merchants are not compared" not in (await browser.open()).words
        monkeypatch.setattr("mpesa_gateway_reconciliation.pages._COMPARED", 1)
        await ops_site.gateway.merchants.create("Second", actor="test")
        assert "older merchants are not compared" in (await browser.open()).words


@pytest.mark.parametrize(
    ("amount", "text", "typed", "is_confirmed"),
    [
        (700, "700.00", "700", True),
        (1500, "1500.00", "1,500.00 ", True),
        (None, "1,500.50", "1,500.50", True),
        (None, "1,500.50", "1500.50", True),
        (None, "one of 500, 600 KES", "one of 500, 600 KES", True),
        (None, "1,500.50", "1500", False),
        (700, "700.00", "", False),
    ],
)
def test_confirmation_of_a_different_amount_accepts_its_spellings_only(
    amount: int | None, text: str, typed: str, *, is_confirmed: bool
) -> None:
    line: Any = {"amount": amount, "amount_text": text}
    payment = SimpleNamespace(amount="110.00")
    decided = Decided(reason="seen on the portal", confirmed_amount=typed)
    with nullcontext() if is_confirmed else pytest.raises(InvalidFields):
        require_confirmation(line, cast("PaymentView", payment), decided)


def test_gaps_of_windows_are_the_uncovered_times() -> None:
    at = [datetime(2026, 11, 30, hour, tzinfo=UTC) for hour in range(8)]
    assert gaps_of([(at[0], at[2]), (at[1], at[3]), (at[3], at[4])]) == []
    assert gaps_of([(at[0], at[2]), (at[3], at[6]), (at[4], at[5]), (at[7], at[7])]) == [(at[2], at[3]), (at[6], at[7])]


async def test_credentials_page_registers_pull(ops_site: OpsSite) -> None:
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/credentials/{ops_site.merchant_id}")
        assert "not registered" in page.words
        assert not page.has_form("/pull")
    async with ops_site.browser() as browser:
        page = await browser.open(f"/credentials/{ops_site.merchant_id}")
        answer = await browser.submit(page, "/pull")
        assert "Pull registered for 174379." in answer.words
        assert "registered shortcode 174379 (sandbox)" in answer.words
        for path in ("/reconciliation/run_00000000000000000000000000", "/reconciliation/lines/txn_0"):
            assert (await browser.open(path)).status == 404
