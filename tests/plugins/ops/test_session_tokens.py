"""Protects the sessions of a browser in which a person signs in again, or enters a second factor."""

import asyncio

from tests.browsing import Browser, set_up_factor
from tests.plugins.ops.conftest import OpsSite


async def test_sign_in_ends_the_earlier_session_of_the_same_browser(ops_site: OpsSite) -> None:
    async with Browser(ops_site.url) as browser, Browser(ops_site.url) as thief:
        await browser.sign_in("viola")
        thief.add_cookies(browser.cookies)
        await browser.sign_in("viola")
        assert (await thief.open("/account", follows=False)).status == 303


async def test_second_factor_turns_a_waiting_session_into_one_with_a_new_token(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        codes = await set_up_factor(browser)
    async with Browser(ops_site.url) as browser, Browser(ops_site.url) as thief:
        asked = await browser.sign_in("amina")
        thief.add_cookies(browser.cookies)
        (waiting,) = (cookie.value for cookie in browser.cookies)
        assert (await browser.submit(asked, "/login-code", code="000000")).status == 401
        assert [cookie.value for cookie in browser.cookies] == [waiting]
        assert (await browser.submit(asked, "/login-code", code=codes[0])).url == ops_site.url
        (full,) = (cookie.value for cookie in browser.cookies)
        assert full != waiting
        assert (await browser.open("/account", follows=False)).status == 200
        assert (await thief.open("/account")).url == f"{ops_site.url}/login"
        stolen = await thief.send(asked.url, {"code": codes[1]})
        assert (stolen.url, [cookie.value for cookie in thief.cookies]) == (f"{ops_site.url}/login", [waiting])


async def test_waiting_session_with_two_codes_at_once_becomes_one_session(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        codes = await set_up_factor(browser)
    async with Browser(ops_site.url) as browser:
        asked = await browser.sign_in("amina")
        answers = [browser.send(asked.url, {"code": code}, follows=False) for code in codes[:3]]
        given = [answer.headers.get("set-cookie") for answer in await asyncio.gather(*answers)]
        assert len([each for each in given if each]) == 1
        verified = "SELECT count(*) FROM ops_session WHERE verified_at > created_at"
        assert await ops_site.gateway.db.fetchval(verified) == 2
