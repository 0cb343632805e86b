"""Pushes for account numbers while M-Pesa's clock is behind the gateway's."""

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from tests.daraja import stk_callback
from tests.plugins.c2b.c2b_site import PHONE, C2bSite, c2b_site, path_of


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found


@pytest.mark.parametrize("minutes", [-3, 1, 3, 50])
@pytest.mark.parametrize("first", ["c2b", "callback"])
async def test_push_for_an_account_number_is_paid_in_every_order_and_counts_once(
    site: C2bSite, first: str, minutes: int
) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 500})).status == 200
    payment = (await site.api.pay(PHONE, key="k-1", reference="HOUSE 7")).data
    at = f"{datetime.now(EAT) - timedelta(minutes=minutes):%Y%m%d%H%M%S}"

    async def call_back() -> None:
        sent = site.daraja.requests_of("stkpush")[-1]
        body = stk_callback(payment["provider_ref"], receipt="TKN4A1B2C3", phone=int(PHONE))
        assert (await site.api.call("POST", path_of(sent["CallBackURL"]), body)).status == 200

    async def confirm() -> None:
        assert (await site.confirm(path, account="HOUSE 7", TransTime=at)).status == 200

    for one in (call_back, confirm) if first == "callback" else (confirm, call_back):
        await one()
    found = (await site.api.call("GET", f"/v1/payments/{payment['id']}")).data
    account = (await site.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    assert (found["status"], account["received"]) == ("completed", "500.00")


@pytest.mark.parametrize("minutes", [3, 50])
async def test_push_whose_callback_is_lost_counts_once(site: C2bSite, minutes: int) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 500})).status == 200
    payment = (await site.api.pay(PHONE, key="k-1", reference="HOUSE 7")).data
    at = f"{datetime.now(EAT) - timedelta(minutes=minutes):%Y%m%d%H%M%S}"
    assert (await site.confirm(path, account="HOUSE 7", TransTime=at)).status == 200
    text = "The service request is processed successfully."
    site.daraja.add_answers("stkquery", (200, {"ResponseCode": "0", "ResultCode": "0", "ResultDesc": text}))
    found = (await site.api.call("POST", f"/v1/payments/{payment['id']}/query")).data
    account = (await site.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    assert (found["status"], account["received"]) == ("completed", "500.00")


async def test_money_by_hand_before_a_push_counts_beside_it(site: C2bSite) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 1000})).status == 200
    at = f"{datetime.now(EAT) - timedelta(minutes=90):%Y%m%d%H%M%S}"
    payment = (await site.api.pay(PHONE, key="k-1", reference="HOUSE 7")).data
    # Confirmed late.
    assert (await site.confirm(path, "TKN0000001", account="HOUSE 7", TransTime=at)).status == 200
    sent = site.daraja.requests_of("stkpush")[-1]
    body = stk_callback(payment["provider_ref"], receipt="TKN4A1B2C3", phone=int(PHONE))
    assert (await site.api.call("POST", path_of(sent["CallBackURL"]), body)).status == 200
    account = (await site.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    assert account["received"] == "1000.00"
