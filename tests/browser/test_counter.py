"""Protects the counter in a browser: it updates itself, and an order that is typed stays where it is."""

from playwright.async_api import Browser, expect

from tests.browser.conftest import SLIM, opened, overflows, signs_in, violations
from tests.conftest import Harness
from tests.loose_money import receive_loose


async def test_counter_new_money_appears_and_typed_order_stays(harness: Harness, amina: str, chromium: Browser) -> None:
    page, wrong = await opened(chromium, SLIM)
    await signs_in(page, amina)
    await page.goto(f"{amina}/transactions/counter?shortcode=174379")
    await expect(page.locator("main")).to_contain_text("No unallocated money")
    await receive_loose(harness, "TKM0000001", payer_name="JOHN")
    order = page.locator("[data-counter]", has_text="TKM0000001").locator("input[name=order]")
    await expect(order).to_be_visible(timeout=15_000)
    await expect(page.locator("main")).not_to_contain_text("No unallocated money")
    await order.focus()
    await page.keyboard.type("10")
    await receive_loose(harness, "TKM0000002")
    await expect(page.locator("[data-newer] a")).to_contain_text("1 new", timeout=15_000)
    await expect(order).to_be_focused()
    await page.keyboard.type("41")
    await page.locator("[data-newer] a").click()
    await expect(page.locator("[data-counter]")).to_have_count(2)
    await expect(order).to_have_value("1041")
    assert await violations(page) == []
    assert not await overflows(page)
    await order.focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("main > [role=status]").first).to_contain_text("taken for: Order 1041")
    assert wrong == []
