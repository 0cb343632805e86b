"""Protects the example shop in a browser: from "Pay with M-Pesa" to "Paid", live, and by reload without scripts."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import DESK, SLIM, opened, overflows, violations
from tests.journeys.test_shop import open_shop


@pytest.mark.parametrize("size", [DESK, SLIM], ids=["desk", "slim"])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "plain"])
async def test_shop_page_shows_the_payment_without_reload(
    values: dict[str, Any], tmp_path: Path, chromium: Browser, size: tuple[int, int], scripts: bool
) -> None:
    values["simulator"] = {"callback_delay": 1.0}
    async with open_shop(values, tmp_path, "/payments") as (buyer, orders, _):
        page, wrong = await opened(chromium, size, scripts=scripts)
        await page.goto(f"{buyer.base}/")
        if scripts:
            assert await violations(page) == []
        await page.get_by_label("Unga wa dola").check()
        await page.get_by_label("Your M-Pesa number").fill("0712 345 678")
        await page.get_by_role("button", name="Pay with M-Pesa").click()
        await expect(page.locator("#state")).to_have_text("Look at your phone")
        await expect(page.locator("#state")).to_contain_text("Paid, receipt ", timeout=15_000)
        order = orders.find(page.url.rpartition("/")[2])
        await expect(page.locator("#state")).to_contain_text(order.receipt or "none")
        await expect(page.locator("section")).to_contain_text("KES 210")
        assert not await overflows(page)
        if scripts:
            assert await violations(page) == []
        assert wrong == []


async def test_shop_payment_lacking_funds_can_be_retried(
    values: dict[str, Any], tmp_path: Path, chromium: Browser
) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, _):
        page, wrong = await opened(chromium, SLIM)
        await page.goto(f"{buyer.base}/")
        await page.get_by_label("Your M-Pesa number").fill("0700 000 003")
        await page.keyboard.press("Enter")
        await expect(page.locator("#state")).to_contain_text("Not paid: insufficient funds", timeout=15_000)
        assert await violations(page) == []
        await page.get_by_label("Your M-Pesa number").fill("0712 345 678")
        await page.keyboard.press("Enter")
        await expect(page.locator("#state")).to_contain_text("Paid, receipt ", timeout=15_000)
        assert wrong == []
