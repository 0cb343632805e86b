"""Protects access tokens from merchants that have another merchant's consumer key and not its secret."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.plugins.credentials.two_env_site import PHONE, TwoEnvSite, put, two_env_site


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[TwoEnvSite]:
    """A gateway between a sandbox and a live Daraja."""
    async with two_env_site(values) as found:
        yield found


@pytest.mark.parametrize(("secret", "is_shared"), [({}, True), ({"consumer_secret": "guessed-and-wrong"}, False)])
async def test_token_is_shared_by_those_who_have_its_secret(
    site: TwoEnvSite, secret: dict[str, str], is_shared: bool
) -> None:
    one, other = await site.account(), await site.account()
    assert (await put(one.live, "live", "600001")).status == 200
    assert (await one.live.pay(PHONE, key="mine")).status == 201
    asked = len(site.live.asked)
    assert (await put(other.live, "live", "600002", **secret)).status == 200
    await other.live.pay(PHONE, key="theirs")
    operations = [operation for operation, _ in site.live.asked[asked:]]
    assert ("oauth" not in operations) is is_shared
