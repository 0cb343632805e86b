"""Protects storage from the holder of a sandbox address: a rate and a size, which live addresses do not have."""

import asyncio
import json
from typing import Any

import pytest

from mpesa_gateway.testing.serving import SANDBOX
from tests.daraja import c2b_body
from tests.plugins.c2b.c2b_site import C2bSite, c2b_site, path_of
from tests.plugins.c2b.test_other_merchants import registered
from tests.plugins.credentials.two_env_site import put, two_env_site

LARGEST = 16_384


@pytest.fixture
def limited(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with a low rate; this machine is a listed source of live callbacks."""
    return values | {"callbacks": {"allowlist": ["127.0.0.1"], "sandbox_per_minute": 5}}


def padded(receipt: str, length: int) -> bytes:
    """Return a confirmation of this many bytes."""
    body = json.dumps(c2b_body(receipt)).encode()
    return body + b" " * (length - len(body))


async def count(site: C2bSite, table: str) -> int:
    number: int = await site.gateway.db.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - a table of ours
    return number


async def test_sandbox_confirmations_over_the_rate_are_refused_and_not_stored(limited: dict[str, Any]) -> None:
    async with c2b_site(limited) as site:
        path, question = await site.addresses()
        for number in range(5):
            assert (await site.confirm(path, f"TKN000000{number}")).status == 200
        over = await asyncio.gather(*(site.confirm(path, f"TKN100000{number}") for number in range(9)))
        refused = [answer for answer in over if answer.status == 429]
        # One more passes at the end of a minute, when the count of the last one fades.
        assert len(refused) >= 8
        assert 1 <= int(refused[0].headers["Retry-After"]) <= 60
        stored = [await count(site, table) for table in ("callback", "refused_callback", "transaction")]
        assert stored == [14 - len(refused), 0, 14 - len(refused)]
        # Questions and other shortcodes have a rate of their own.
        assert (await site.api.call("POST", question, c2b_body())).status == 200
        shortcode = {"provider": "mpesa", "mpesa": SANDBOX["mpesa"] | {"shortcode": "600111"}}
        assert (await site.api.call("PUT", "/v1/merchant/providers", shortcode)).status == 200
        other = path_of((await site.register(shortcode="600111")).data["addresses"]["confirmation"])
        assert (await site.confirm(other, "TKN3000000", shortcode="600111")).status == 200


async def test_sandbox_questions_over_the_rate_are_refused(limited: dict[str, Any]) -> None:
    async with c2b_site(limited) as site:
        path, question = await site.addresses()
        codes = [(await site.api.call("POST", question, c2b_body())).status for _ in range(9)]
        assert codes[:5] == [200] * 5
        assert codes[5:].count(429) >= 3
        assert (await site.confirm(path)).status == 200


async def test_sandbox_body_over_the_limit_is_refused_with_its_beginning_stored(values: dict[str, Any]) -> None:
    async with c2b_site(values) as site:
        path, question = await site.addresses()
        assert (await site.api.call("POST", path, raw=padded("TKN0000001", LARGEST))).status == 200
        for to in (path, question):
            assert (await site.api.call("POST", to, raw=padded("TKN0000002", LARGEST + 1))).status == 413
        assert [row["receipt"] for row in await site.transactions()] == ["TKN0000001"]
        most = await site.gateway.db.fetchval("SELECT max(length(original)) FROM refused_callback")
        assert (most or 0) <= LARGEST


async def test_live_confirmations_have_neither_the_rate_nor_the_size(limited: dict[str, Any]) -> None:
    async with two_env_site(limited) as both:
        one = await both.account()
        assert (await put(one.live, "live")).status == 200
        path, question = await registered(one)
        for number in range(8):
            body = json.dumps(c2b_body(f"TKN000000{number}", shortcode="600001")).encode() + b" " * (LARGEST * number)
            assert (await one.live.call("POST", path, raw=body)).status == 200
            assert (await one.live.call("POST", question, c2b_body(shortcode="600001"))).status == 200
        assert await both.gateway.db.fetchval("SELECT count(*) FROM transaction") == 8
