"""Fixtures: pages in Chromium (`apt-get install chromium`)."""

import os
import shutil
from collections.abc import AsyncGenerator

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from mpesa_gateway.ops_contract import Role
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD
from tests.conftest import Harness

DESK = (1280, 800)
SLIM = (390, 844)
"""The size of a desktop screen and of a phone's, in pixels."""


@pytest.fixture
async def chromium() -> AsyncGenerator[Browser]:
    """A running Chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("there is no `chromium`: apt-get install chromium")
    # Chromium's own sandbox does not work for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        await browser.close()


async def opened(
    chromium: Browser, size: tuple[int, int] = DESK, *, scripts: bool = True, dark: bool = False
) -> tuple[Page, list[str]]:
    """Yield an empty page of this size, and its errors: of scripts, and violations of the CSP."""
    context = await chromium.new_context(
        viewport={"width": size[0], "height": size[1]},
        java_script_enabled=scripts,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page, wrong = await context.new_page(), list[str]()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    return page, wrong


async def violations(page: Page) -> list[str]:
    """Return axe's serious findings on a page: the rule and the elements."""
    found = await Axe().run(page)
    return [
        f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for each in found.response["violations"]
        for node in each["nodes"]
    ]


async def overflows(page: Page) -> bool:
    """Return True if the page is wider than the screen."""
    return bool(await page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


_CLIPPED = """
[...document.querySelectorAll(
    'form[data-filters] input, form[data-filters] select, dl[data-tiles] dd, dl[data-tiles] a')]
    .filter(each => each.getClientRects().length)
    .filter(each => {
        const own = each.getBoundingClientRect(), box = each.closest('label, dl[data-tiles] > div');
        return box && (own.right > box.getBoundingClientRect().right + 1 || each.scrollWidth > each.clientWidth + 1
            && !each.matches('input, select, a'));
    })
    .map(each => each.outerHTML.slice(0, 120))
"""


async def clipped(page: Page) -> list[str]:
    """Return the filter fields and figures that are wider than their box."""
    found: list[str] = await page.evaluate(_CLIPPED)
    return found


_CUT_TABLES = """
[...document.querySelectorAll('[data-scroll]:has(> table[data-cards])')]
    .filter(each => each.scrollWidth > each.clientWidth + 1)
    .map(each => `a list of ${each.scrollWidth} px in a card of ${each.clientWidth} px`)
"""


async def cut_tables(page: Page) -> list[str]:
    """Return the lists whose last columns are hidden."""
    found: list[str] = await page.evaluate(_CUT_TABLES)
    return found


@pytest.fixture
async def amina(harness: Harness) -> str:
    """Create an operator with every right; returns the URL of the operator pages."""
    await harness.gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
    return f"{harness.base}/ops"


async def signs_in(page: Page, ops: str) -> None:
    """Sign in as amina."""
    await page.goto(f"{ops}/login")
    await page.fill("input[name=email]", "amina@shop.example")
    await page.fill("input[type=password]", PASSWORD.reveal())
    await page.keyboard.press("Enter")
    await page.wait_for_url(lambda url: not url.endswith("/login"))
