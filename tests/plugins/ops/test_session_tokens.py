"""Protects the sessions of a browser in which a person signs in again."""

from tests.browsing import Browser
from tests.plugins.ops.conftest import OpsSite


async def test_sign_in_ends_the_earlier_session_of_the_same_browser(ops_site: OpsSite) -> None:
    async with Browser(ops_site.url) as browser, Browser(ops_site.url) as thief:
        await browser.sign_in("viola")
        thief.add_cookies(browser.cookies)
        await browser.sign_in("viola")
        assert (await thief.open("/account", follows=False)).status == 303
