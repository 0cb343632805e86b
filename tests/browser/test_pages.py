"""Protects the pages in a browser: a payment from the phone's prompt to its page, and axe's rules on every page."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from saq import Job, Status

from mpesa_gateway.testing.serving import INITIATED
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_simulator.exchange_log import ExchangeLog
from tests.browser.conftest import DESK, SLIM, clipped, cut_tables, opened, overflows, signs_in, violations
from tests.conftest import Harness
from tests.house.tree import ROOT

ASKS = "254700000020"

WIDTHS = (360, 390, 768, 1280)
"""Screen widths in pixels at which no page scrolls sideways."""

LOOK = os.environ.get("LOOK")
"""A folder for screenshots of every page, if set."""

SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""If set, the tests replace the screenshots in docs/."""


async def save_screenshot(page: Page, name: str) -> None:
    """Replace a screenshot in docs/ if requested."""
    if SCREENSHOTS:
        await page.screenshot(path=Path(ROOT, "docs", "screenshots", f"{name}.png"))


@pytest.mark.parametrize("size", [DESK, SLIM], ids=["desk", "slim"])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "plain"])
async def test_phone_page_shows_the_prompt_and_the_pin_completes_it(
    harness: Harness, amina: str, chromium: Browser, size: tuple[int, int], scripts: bool
) -> None:
    page, wrong = await opened(chromium, size, scripts=scripts)
    await page.goto(f"{harness.base}/simulator")
    if not scripts:
        await page.click("noscript a[href*=watch]")
    made: dict[str, Any] = (await harness.api.pay(ASKS, 1250, key="order")).data
    await expect(page.locator("#prompt")).to_contain_text("1,250.00", timeout=15_000)
    if scripts:
        await expect(page.locator("input[name=pin]")).to_be_focused()
        await expect(page.locator("[role=status]")).to_contain_text("M-PESA asks")
        await save_screenshot(page, f"simulator-prompt-{size[0]}")
    await page.locator("input[name=pin]").press_sequentially("1234")
    await page.keyboard.press("Enter")
    payment = await harness.api.settled(made["id"], "completed")
    await expect(page.locator("#screen")).to_contain_text(f"{payment['receipt']} Confirmed. Ksh1,250.00 sent to")
    await expect(page.locator("#screen")).to_contain_text("New M-PESA balance is Ksh23,750.00.")
    if scripts:
        await expect(page.locator("#lines")).to_contain_text("← called back")
        await page.locator("#lines summary").first.click()
        await save_screenshot(page, f"simulator-paid-{size[0]}")
    assert not await overflows(page)
    await signs_in(page, amina)
    await page.goto(f"{amina}/payments/{made['id']}")
    await expect(page.locator("main")).to_contain_text(payment["receipt"])
    await expect(page.locator("main > header")).to_contain_text("completed")
    assert wrong == []


async def test_phone_page_update_keeps_typed_input_and_the_log_position(harness: Harness, chromium: Browser) -> None:
    page, wrong = await opened(chromium)
    await page.goto(f"{harness.base}/simulator")
    await harness.api.pay(ASKS, key="order")
    await expect(page.locator("input[name=pin]")).to_be_focused()
    await page.keyboard.type("12")
    walk_in = {"phone": ASKS, "amount": 10, "shortcode": "174379", "reference": "counter"}
    receipt = (await harness.api.call("POST", "/simulator/control/ledger", walk_in)).data["receipt"]
    await expect(page.locator("#screen")).to_contain_text(receipt)
    await expect(page.locator("input[name=pin]")).to_be_focused()
    await expect(page.locator("input[name=pin]")).to_have_value("12")
    await expect(page.locator("input[name=balance]")).to_have_value("24990")
    lines = page.locator("#lines li")
    shown = len(harness.gateway.services.get(ExchangeLog).lines)
    await expect(lines).to_have_count(shown)
    await page.locator("#lines summary").first.click()
    await harness.api.pay("254700000001", key="another")
    more = page.locator("#lines header button")
    # The push and its callback. A click between the two would show the first line, and a button for the second.
    await expect(more).to_have_text(re.compile(r"^2 new\b"))
    await expect(lines).to_have_count(shown)
    await more.click()
    await expect(more).to_be_hidden()
    await expect(lines).to_have_count(shown + 2)
    await page.locator("button", has_text="Cancel").click()
    await expect(page.locator("#screen")).to_contain_text("You cancelled the request")
    assert wrong == []


async def test_phone_page_without_a_stream_polls(harness: Harness, chromium: Browser) -> None:
    page, _ = await opened(chromium)
    await page.route("**/simulator/changes", lambda route: route.abort())
    await page.goto(f"{harness.base}/simulator")
    await harness.api.pay(ASKS, key="order")
    await expect(page.locator("#prompt")).to_be_visible(timeout=15_000)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, SLIM], ids=["desk", "slim"])
async def test_main_pages_have_no_axe_violations(
    harness: Harness, amina: str, chromium: Browser, size: tuple[int, int], dark: bool
) -> None:
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    paid = (await harness.api.pay("254700000000", 500, key="paid")).data
    await harness.api.settled(paid["id"], "completed")
    failed = (await harness.api.pay("254700000001", 500, key="failed")).data
    await harness.api.settled(failed["id"], "failed")
    await harness.api.pay(ASKS, key="asked")
    await harness.gateway.services.get(PaymentStatsReader).count()
    page, _ = await opened(chromium, size, dark=dark)
    await page.goto(f"{amina}/login")
    found = {"login": await violations(page)}
    await page.goto(f"{harness.base}/simulator")
    await page.locator("#lines summary").first.click()
    found["simulator, asked"] = await violations(page)
    await page.goto(f"{harness.base}/simulator?phone=254722000001")
    found["simulator"] = await violations(page)
    await signs_in(page, amina)
    links = await page.eval_on_selector_all("nav a[href]", "links => links.map(link => link.href)")
    assert len(links) >= 10
    shown = {amina: "ops", f"{amina}/payments": "ops-payments", f"{amina}/payments/{paid['id']}": "ops-payment"}
    for link in dict.fromkeys([*links, f"{amina}/payments/{paid['id']}", f"{amina}/payments/{failed['id']}"]):
        await page.goto(link)
        await expect(page.locator("h1").first).to_be_visible()
        found[link.removeprefix(amina)] = await violations(page)
        if await overflows(page):
            found[link].append("wider than the screen")
        if not dark and link in shown:
            await save_screenshot(page, f"{shown[link]}-{size[0]}")
    for path in ("queue/", "queue/queues/mpesa-daraja"):
        await page.goto(f"{amina}/{path}")
        await expect(page.locator("table").first).to_be_visible()
        found[path] = await violations(page)
    broken = {f"{name}: {what}" for name, each in found.items() for what in each}
    assert not broken, "\n".join(sorted(broken))


async def _with_data(harness: Harness) -> tuple[dict[str, str], list[str]]:
    """Create one object of each kind on the operator pages.

    Returns a value for each name in the pages' paths, and further addresses of pages.
    """
    api = harness.api
    assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    assert (await api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
    paid = (await api.pay("254700000000", 60_392, key="paid", reference="INV-2026-001")).data
    await api.settled(paid["id"], "completed")
    failed = (await api.pay("254700000001", 110, key="failed")).data
    await api.settled(failed["id"], "failed")
    body = {"payment_id": paid["id"], "amount": 392}
    refund = (await api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "refund"})).data
    walk_in = {"phone": "254799000111", "amount": 700, "shortcode": "174379", "reference": "WALKIN"}
    await api.call("POST", "/simulator/control/ledger", walk_in)
    run = (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).data
    line = await harness.gateway.db.fetchval(
        "SELECT transaction_id FROM statement_note WHERE finding = 'not_found' LIMIT 1"
    )
    await harness.gateway.services.get(PaymentStatsReader).count()
    await _misplaced(harness)
    queue = harness.gateway.jobs.queues["maintenance"]
    stopped = Job("payments.sweep", key="payments.sweep:1", queue=queue)
    await queue.finish(stopped, Status.FAILED, error="RuntimeError: the endpoint is away")
    read = harness.gateway.db.fetchval
    samples = {
        "payment_id": paid["id"],
        "merchant_id": paid["merchant_id"],
        "refund_id": refund["id"],
        "run_id": run["id"],
        "line_id": line,
        "transaction_id": line,
        "event_id": (await api.call("GET", "/v1/events")).data[0]["id"],
        "delivery_id": await read("SELECT delivery_id FROM delivery LIMIT 1"),
        "endpoint_id": await read("SELECT endpoint_id FROM webhook_endpoint LIMIT 1"),
        "callback_id": await read("SELECT callback_id FROM callback LIMIT 1"),
        "refused_id": await read("SELECT refused_id FROM refused_callback LIMIT 1"),
        "person_id": await read("SELECT person_id FROM person LIMIT 1"),
        "queue": queue.name,
        "job": stopped.key,
        "number": "5123456",
    }
    pending = (await api.pay("254700000007", 60, key="pending")).data
    fresh = (await harness.gateway.merchants.create("Duka la Amina na Watoto Limited", actor="test")).merchant_id
    more = INITIATED["mpesa"] | {
        "shortcode": "600002",
        "till_number": "5123456",
        "name": "Westlands, next to the market",
    }
    assert (await api.call("POST", "/v1/merchant/shortcodes", more)).status == 201
    setup = [f"credentials/{fresh}/edit", *(f"merchants/{fresh}/{form}" for form in ("webhook", "payment"))]
    return samples, [
        *("merchants?new=merchant", f"merchants/{fresh}", f"merchants/{fresh}?new=key"),
        *setup,
        *(f"{path}?env=live" for path in (f"merchants/{fresh}", *setup)),
        "merchants?env=sandbox",
        *(f"payments/{payment['id']}" for payment in (failed, pending)),
        "payments?status=completed&since=2026-01-01&until=2036-01-01",
        f"reconciliation/lines/{line}/match?payment_id={failed['id']}",
        "events?kind=payment.completed",
    ]


async def _misplaced(harness: Harness) -> None:
    """Send a callback that is refused."""
    answer = await harness.api.call("POST", "/callbacks/stk/of/nobody", {"Body": {"stkCallback": {}}})
    assert answer.status < 500


def _registered(harness: Harness, samples: dict[str, str]) -> list[str]:
    """Return the address of every registered page. Raises KeyError for a page whose path names an unknown value."""
    pages, _ = harness.gateway.port(PageRegistry).every()
    paths = [re.sub(r"\{(\w+)\}", lambda found: samples[found[1]], page.path) for page in pages]
    return [f"{path}?payment_id={samples['payment_id']}" if path.endswith("/match") else path for path in paths]


async def _look(page: Page, name: str, width: int) -> None:
    for scheme in ("light", "dark") if LOOK else ():
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        await page.screenshot(path=Path(LOOK or "", f"{name[:40]}-{width}-{scheme}.png"), full_page=True)


@pytest.mark.parametrize(
    ("scripts", "dark"), [(False, False), (True, False), (True, True)], ids=["plain", "light", "dark"]
)
async def test_setup_forms_work_by_keyboard(
    harness: Harness, amina: str, chromium: Browser, scripts: bool, dark: bool
) -> None:
    page, wrong = await opened(chromium, SLIM, scripts=scripts, dark=dark)
    await signs_in(page, amina)
    merchant_id = (await harness.gateway.merchants.create("Duka", actor="test")).merchant_id
    found: dict[str, list[str]] = {}

    async def press(*keys: str) -> None:
        for key in keys:
            await page.keyboard.press(key)

    async def examine(name: str) -> None:
        # axe is a script.
        found[name] = await violations(page) if scripts else []

    await page.goto(f"{amina}/merchants/{merchant_id}")
    await examine("checklist")
    await page.locator("a", has_text="Enter credentials").focus()
    await press("Enter")
    await expect(page.locator("h1")).to_have_text("M-Pesa credentials")
    await page.locator("input[name=shortcode]").focus()
    for text in ("17", "", "consumer-key-of-this-shop", "consumer-secret-of-this-shop", "passkey-of-this-shop"):
        await page.keyboard.type(text)
        await press("Tab")
    await press("Enter")
    await expect(page.locator("label", has_text="Shortcode").first).to_contain_text("must be 5 to 7 digits")
    await expect(page.locator("input[name=shortcode]")).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("input[name=passkey]")).to_have_value("")
    await examine("refused")
    await page.locator("input[name=shortcode]").fill("174379")
    await page.locator("input[name=shortcode]").focus()
    await press("Tab", "Tab")
    for text in ("consumer-key-of-this-shop", "consumer-secret-of-this-shop", "passkey-of-this-shop"):
        await page.keyboard.type(text)
        await press("Tab")
    await press("Enter")
    await expect(page.locator("[role=status]").first).to_contain_text("Sandbox credentials of shortcode 174379 stored")
    await page.locator("button", has_text="Verify").focus()
    await press("Enter")
    await expect(page.locator("[role=status]").first).to_contain_text("Credentials valid")
    await page.locator("a", has_text="Set webhook").focus()
    await press("Enter")
    await expect(page.locator("h1")).to_have_text("Webhook")
    await examine("webhook")
    await page.goto(f"{amina}/merchants/{merchant_id}/payment")
    await examine("payment")
    await page.locator("input[name=phone]").focus()
    await page.keyboard.type("0711000001")
    await press("Enter")
    await expect(page.locator("h1")).to_contain_text("KES")
    # A form that is shown again has the status 422.
    assert [each for each in wrong if "422" not in each] == []
    broken = {f"{name}: {what}" for name, each in found.items() for what in each}
    assert not broken, "\n".join(sorted(broken))


async def test_every_page_fits_the_width_of_the_screen(harness: Harness, amina: str, chromium: Browser) -> None:
    samples, further = await _with_data(harness)
    page, _ = await opened(chromium)
    await signs_in(page, amina)
    links = await page.eval_on_selector_all("nav a[href]", "links => links.map(link => link.href)")
    registered = [f"{amina}/{path}".rstrip("/") for path in _registered(harness, samples)]
    wide: list[str] = []
    parts: set[str] = set()
    for link in dict.fromkeys(
        [*links, *registered, *(f"{amina}/{path}" for path in further), f"{harness.base}/simulator"]
    ):
        answer = await page.request.get(link)
        assert answer.status == 200, link
        if "<html" not in await answer.text():
            parts.add(link.removeprefix(f"{amina}/").partition("?")[0])
            continue
        await page.goto(link)
        await page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        name = re.sub(r"[^a-z]+", "-", link.removeprefix(amina).lower()).strip("-") or "overview"
        for width in WIDTHS:
            await page.set_viewport_size({"width": width, "height": 800})
            await _look(page, name, width)
            if await overflows(page):
                wide.append(f"{name}: wider than {width} px")
            wide += [f"{name}, {width} px: {each}" for each in [*await clipped(page), *await cut_tables(page)]]
    assert not wide, "\n".join(wide)
    lists = {f"{of}/{part}" for of in ("payments", "transactions") for part in ("export", "newer", "total")}
    assert parts == {*lists, "transactions/counter/changes", f"payments/{samples['payment_id']}/changed"}
