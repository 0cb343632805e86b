"""Protects the API reference in a browser: all requests go to the gateway, the CSP allows them, a call can be sent."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import DESK, SLIM, opened, overflows
from tests.conftest import Harness


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, SLIM], ids=["desk", "slim"])
async def test_reference_page_requests_only_the_gateway_and_violates_no_csp(
    harness: Harness, chromium: Browser, size: tuple[int, int], dark: bool
) -> None:
    page, wrong = await opened(chromium, size, dark=dark)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    await page.goto(f"{harness.base}/schema#tag/payments/POST/v1/payments")
    create = page.locator('section[id$="tag/payments/POST/v1/payments"]')
    await expect(create).to_contain_text("Create payment", timeout=30_000)
    await expect(create).to_contain_text("curl")
    await expect(create).to_contain_text("pay_01jdk3v8rc4x9m2q7ztbn5wgae")
    assert "`" not in await page.locator("#reference").inner_text()
    assert not await overflows(page)
    assert await page.evaluate("document.body.classList.contains('dark-mode')") == dark
    if size == DESK:
        await page.keyboard.press("Control+k")
        await page.get_by_role("dialog").get_by_role("combobox").fill("refund")
        await expect(page.get_by_role("option", name="Create refund").first).to_be_visible()
    assert [url for url in requested if not url.startswith((f"{harness.base}/", "data:", "blob:"))] == []
    assert wrong == []


async def test_reference_page_sends_a_call_with_the_key(harness: Harness, chromium: Browser) -> None:
    page, wrong = await opened(chromium)
    await page.goto(f"{harness.base}/schema")
    await page.get_by_placeholder("QUxM").first.fill(harness.api.key or "", timeout=30_000)
    await page.goto(f"{harness.base}/schema#tag/payments/POST/v1/payments")
    create = page.locator('section[id$="tag/payments/POST/v1/payments"]')
    await create.get_by_role("button", name="Test Request").click(timeout=30_000)
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Send").first.click()
    await expect(dialog).to_contain_text("201", timeout=15_000)
    assert (await harness.api.call("GET", "/v1/payments")).data[0]["reference"] == "order 1041"
    assert wrong == []
