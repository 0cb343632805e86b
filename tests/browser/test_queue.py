"""Protects SAQ's pages in a browser: in our frame, without findings of axe or the CSP, with a working button."""

import pytest
from playwright.async_api import Browser, expect
from saq import Job, Status

from tests.browser.conftest import DESK, SLIM, opened, overflows, signs_in, violations
from tests.conftest import Harness


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, SLIM], ids=["desk", "slim"])
async def test_queue_pages_are_framed_and_readable(
    harness: Harness, amina: str, chromium: Browser, size: tuple[int, int], dark: bool
) -> None:
    queue = harness.gateway.jobs.queues["maintenance"]
    error = "Traceback (most recent call last):\n  File x, line 1, in run\n    a()\nRuntimeError: the endpoint is away"
    failed = Job("payments.sweep", key="payments.sweep:1", queue=queue)
    await queue.finish(failed, Status.FAILED, error=error)
    await harness.gateway.jobs.enqueue("payments.sweep", delay=3000)
    page, wrong = await opened(chromium, size, dark=dark)
    await signs_in(page, amina)
    found: list[str] = []

    async def check_page(path: str, *words: str) -> None:
        await page.goto(f"{amina}/{path}")
        for each in words:
            await expect(page.locator("main")).to_contain_text(each)
        await expect(page.locator("[data-env]")).to_be_visible()
        assert not await overflows(page), path
        found.extend(f"{path}: {each}" for each in await violations(page))

    await check_page("queue", "Queues", "mpesa-maintenance")
    await check_page(f"queue/queues/{queue.name}", "Workers", "Jobs", "payments.sweep", "scheduled")
    await check_page("failed", "RuntimeError", "the endpoint is away")
    await page.locator("main section a").first.click()
    await check_page(f"queue/queues/{queue.name}/jobs/{failed.key}", "RuntimeError: the endpoint is away", "failed")
    assert found == []
    await page.get_by_role("button", name="Retry").click()
    await expect(page.locator("[data-queue] [data-tone]").first).to_have_text("complete")
    assert (await harness.gateway.audit.page(1, None, "job.retried", None)).rows[0].subject_id == failed.key
    await page.get_by_role("link", name="All queues").click()
    await expect(page.locator("h1")).to_have_text("Queues")
    assert wrong == []
