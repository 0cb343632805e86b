"""Protects the doctor's results about C2B: a lost confirmation and a doubtful registration are named."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import INITIATED
from mpesa_gateway_c2b.doctor import check_registrations
from tests.daraja import fault
from tests.looking import levels, only_merchant, results_of_check
from tests.plugins.c2b.c2b_site import C2bSite, c2b_site
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found


async def results_of(site: C2bSite, **examined: Any) -> dict[str, CheckResult]:
    merchant = await only_merchant(site.gateway)
    return await results_of_check(check_registrations, site.gateway, merchant=merchant, **examined)


async def test_doctor_without_a_registration_says_nothing(site: C2bSite) -> None:
    assert await results_of(site) == {}


async def test_doctor_registered_is_ok(site: C2bSite) -> None:
    await site.register()
    assert levels(await results_of(site)) == {"c2b.registered": "ok"}


async def test_doctor_doubtful_registration_is_a_warning_until_a_confirmation_proves_it(site: C2bSite) -> None:
    site.daraja.add_answers("c2bregister2", fault("500.003.1001", "Urls are already registered."))
    path, _ = await site.addresses()
    assert levels(await results_of(site)) == {"c2b.registered": "warning"}
    await site.confirm(path)
    assert levels(await results_of(site)) == {"c2b.registered": "note"}


async def test_doctor_unknown_registration_is_a_warning(site: C2bSite) -> None:
    site.daraja.add_answers("c2bregister2", (500, b""))
    await site.register()
    assert levels(await results_of(site)) == {"c2b.registered": "warning"}


async def test_doctor_names_money_that_only_pull_has_seen(site: C2bSite) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    at = f"{(site.gateway.clock.now() - timedelta(minutes=5)).astimezone(EAT):%Y-%m-%d %H:%M:%S}"
    site.daraja.add_answers("pullquery", page(line("TKN4A1B2C3", trxDate=at)))
    await site.api.call("POST", RUN, {})
    found = await results_of(site)
    assert levels(found) == {"c2b.registered": "ok", "c2b.confirmations": "warning"}
    assert found["c2b.confirmations"].text.startswith("Pull alone saw 1 unallocated")
    await site.confirm(path)
    assert levels(await results_of(site)) == {"c2b.registered": "ok"}


async def test_doctor_forbidden_word_in_a_live_public_url_is_noted(values: dict[str, Any]) -> None:
    values["public_url"] = "https://mpesa.example.co.ke"
    async with c2b_site(values) as site:
        found = await results_of(site, env="live")
        assert levels(found) == {"c2b.address": "note"}
        assert "mpesa" in found["c2b.address"].text
