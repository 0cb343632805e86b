"""Protects times on pages: every page shows and takes East Africa Time, never UTC."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from mpesa_gateway.clock import EAT
from mpesa_gateway.local_time import format_local
from tests.browsing import Browser, Page
from tests.plugins.ops.conftest import OpsSite
from tests.plugins.ops.test_reconciliation_pages import add_unrequested_payment, line_ids, reconcile, register_pull

_UTC = re.compile(r"\bUTC\b|\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z|\+00:00")
_TIMED = re.compile(r"since|until|start|end|expires_at|from|before|after|at", re.ASCII)
_NO_TIME = {"from"}
"""Hidden fields that name a page."""


def utc_of(page: Page) -> list[str]:
    """Returns the places where a page shows UTC, or takes a time that is not picked.

    Bodies in ``pre`` are as sent. A title is shown on hovering only, as the footer explains.
    """
    text = re.sub(r"<(pre|footer).*?</\1>", "", page.text, flags=re.DOTALL)
    shown = re.sub(r'\b(?:title|datetime|value|href|hx-get)="[^"]*"', "", text)
    found = [shown[max(0, each.start() - 40) : each.end()] for each in _UTC.finditer(shown)]
    for field in re.findall(r"<input [^>]*>", text):
        name = re.search(r'name="(\w+)"', field)
        if name and _TIMED.fullmatch(name[1]) and name[1] not in _NO_TIME and 'type="datetime-local"' not in field:
            found.append(field)
    return found


def test_utc_of_finds_shown_and_typed_utc() -> None:
    def page(text: str) -> Page:
        return Page(200, "http://x/ops", {}, text)

    assert len(utc_of(page("<p>until 2026-11-30T10:15:00Z</p>"))) == 1
    assert len(utc_of(page('<label>Expires (UTC)<input name="expires_at"></label>'))) == 2
    assert len(utc_of(page('<button aria-label="paid 2026-11-30 10:15:00+00:00">'))) == 1
    assert utc_of(page("<footer>hover for UTC</footer><pre>2026-11-30T10:15:00Z</pre>")) == []
    assert utc_of(page('<time title="10:15 UTC">13:15</time><input type="datetime-local" name="since">')) == []


async def _every_page(browser: Browser) -> dict[str, Page]:
    """Open each page that can be reached by links."""
    found: dict[str, Page] = {}
    left = [browser.ops]
    while left:
        url = left.pop()
        path = url.partition("#")[0].removeprefix(browser.ops)
        is_other = not url.startswith(browser.ops) or "/queue" in path or "/export" in path or "/live" in path
        # One page of each list is enough.
        shape = re.sub(r"\w{3}_\w{26}", "{id}", path.partition("?")[0])
        if is_other or shape in found or "/sandbox" in path:
            continue
        found[shape] = page = await browser.open(url)
        if "text/html" in page.headers["Content-Type"]:
            left += page.links
    return found


async def test_no_page_shows_or_takes_utc(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    paid = (await ops_site.api.pay("254711000001", key="paid")).data
    await ops_site.api.settled(paid["id"], "completed")
    await ops_site.api.pay("254700000007", key="pending")
    await ops_site.api.call("POST", "/v1/refunds", {"payment_id": paid["id"]})
    await add_unrequested_payment(ops_site, 700)
    async with ops_site.browser() as browser:
        await reconcile(ops_site, browser)
        # A detail with a time, as the erasure of old data writes it.
        await ops_site.gateway.audit.record(
            "privacy.erasing",
            merchant_id=None,
            actor="test",
            subject_id=None,
            detail={"before": "2026-11-30T10:15:00.000000Z"},
        )
        audit = await browser.open("/audit")
        assert "before: 30 Nov 2026 13:15" in audit.words
        pages = await _every_page(browser)
    assert len(pages) > 25
    assert {path: utc_of(page) for path, page in pages.items() if utc_of(page)} == {}


async def test_typed_times_are_east_africa_time(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    now = ops_site.gateway.clock.now().astimezone(EAT).replace(tzinfo=None, microsecond=0)
    async with ops_site.browser() as browser:
        run = await reconcile(ops_site, browser, start=(now - timedelta(hours=1)).isoformat())
        start = await ops_site.gateway.db.fetchval("SELECT window_start FROM reconciliation_run")
        assert start == (now - timedelta(hours=1)).replace(tzinfo=EAT)
        assert "Run completed." in run.words
        page = await browser.open(f"/merchants/{ops_site.merchant_id}")
        typed: dict[str, Any] = {"name": "Till", "scopes": ["payments:read"], "env": "sandbox"}
        made = await browser.submit(page, ops_site.merchant_id, **typed, expires_at="2100-01-31T00:00")
        assert "API key `Till` created." in made.words
        assert "31 Jan 2100 00:00" in made.words
        key = next(key for key in await ops_site.gateway.api_keys.list(ops_site.merchant_id) if key.name == "Till")
        assert key.expires_at == datetime(2100, 1, 30, 21, tzinfo=UTC)
        # A date in the address of a page starts in East Africa Time too.
        listed = await browser.open("/payments?since=2026-01-31")
        assert listed.field("since") == "2026-01-31T00:00:00"


async def test_list_until_a_date_includes_its_day_and_takes_an_unencoded_plus(ops_site: OpsSite) -> None:
    made = (await ops_site.api.pay("254711000001", 500, key="a")).data
    day = format_local(datetime.fromisoformat(made["created_at"]), "field")[:10]
    async with ops_site.browser() as browser:
        for query in (f"since={day}&until={day}", f"since={day}T00:00+03:00&until={day}T23:59:59+03:00"):
            listed = await browser.open(f"/payments?{query}")
            assert f"/payments/{made['id']}" in listed.text, query
            # The form keeps what was searched for.
            again = await browser.submit(listed, "/payments/look")
            assert f"/payments/{made['id']}" in again.text, query
        found = await browser.submit(await browser.open("/payments"), "/payments/look", since=day, until=day)
        assert f"/payments/{made['id']}" in found.text


async def test_bad_time_says_what_is_allowed(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    async with ops_site.browser() as browser:
        bad = await reconcile(ops_site, browser, start="yesterday", end="30/11/2026")
        assert bad.status == 422
        for name in ("start", "end"):
            label = re.search(rf'<label>[^<]*<input name="{name}".*?</label>', bad.text, re.DOTALL)
            assert label is not None
            assert "this is not a time: choose a time such as 2026-11-30T19:00 (East Africa Time)" in label[0]
        shown = await browser.submit(await browser.open("/payments"), "/payments/look", since="tomorrow")
        assert "this is not a time" in shown.words


async def test_statement_lines_are_in_the_order_of_payment_with_whole_numbers(ops_site: OpsSite) -> None:
    await register_pull(ops_site)
    receipts = [await add_unrequested_payment(ops_site, 100 + number, f"LINE-{number}") for number in range(6)]
    # Lines are stored in another order than they were paid in.
    async with ops_site.browser() as browser:
        run = await reconcile(ops_site, browser)
        db = ops_site.gateway.db
        for minutes, receipt in enumerate(reversed(receipts)):
            await db.execute(
                "UPDATE statement_note SET moments = ARRAY[$2::timestamptz] WHERE transaction_id = "
                "(SELECT transaction_id FROM transaction WHERE receipt = $1)",
                receipt,
                ops_site.gateway.clock.now() - timedelta(minutes=minutes),
            )
        await db.execute("UPDATE transaction SET payer = '0799000111' WHERE receipt = $1", receipts[0])
        order = f"{run.url.partition('?')[0]}"
        page = await browser.open(order)
        assert re.findall(r"<code>([A-Z0-9]{10})</code>", page.text) == receipts
        assert page.words.count("254799000111") == 6
        unresolved = await browser.open("/reconciliation/lines")
        assert re.findall(r"<code>([A-Z0-9]{10})</code>", unresolved.text) == receipts[::-1]
        assert len(line_ids(unresolved)) == 6
