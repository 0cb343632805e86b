"""Protects erasure: a payer's number and name leave transactions and confirmations in each form, and others stay."""

import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import SetClock
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.privacy import Privacy
from tests.plugins.c2b.c2b_site import DIGEST, PHONE, C2bSite, c2b_site


@pytest.fixture
async def site(values: dict[str, Any], frozen_clock: SetClock) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values, clock=frozen_clock) as found:
        yield found


@pytest.mark.parametrize("payer", [PHONE, DIGEST, int(PHONE)])
async def test_erasure_removes_number_and_name_of_a_confirmation(
    site: C2bSite, frozen_clock: SetClock, payer: Any
) -> None:
    path, _ = await site.addresses()
    time = "20261124115500"
    await site.api.call("PUT", "/v1/account-numbers/A7", {})
    await site.confirm(path, phone=payer, account="A7", FirstName="AMINA", LastName="OTIENO", TransTime=time)
    await site.confirm(path, "TKN4A1B2C4", phone="254711000001", FirstName="PETER", TransTime=time)
    frozen_clock.advance(timedelta(days=60))
    done = await Privacy(site.gateway).erase(Msisdn(PHONE), actor="test")
    assert (done.erased["transactions"], done.erased["callbacks"]) == (1, 1)
    first, second = await site.transactions()
    assert (first["payer"], first["payer_digest"], first["payer_name"]) == (
        "erased",
        None,
        None,
    )
    assert (second["payer"], second["payer_name"]) == ("254711000001", "PETER")
    bodies = [
        json.loads(row["body"])
        for row in await site.gateway.db.fetch("SELECT callback.body FROM callback ORDER BY handle")
    ]
    assert [(body["MSISDN"], body["FirstName"]) for body in bodies] == [("erased", "erased"), ("254711000001", "PETER")]
    assert bodies[0]["LastName"] == "erased"
    assert bodies[0]["TransAmount"] == "500.00"


@pytest.mark.parametrize(
    "typed", ["0708374149", "0708 374 149", "0708-374-149", "+254 708 374 149", "0708 - 374 - 149", "0708\u2011374 149"]
)
async def test_erasure_removes_a_number_that_was_typed_as_account_number(
    site: C2bSite, frozen_clock: SetClock, typed: str
) -> None:
    path, _ = await site.addresses()
    await site.confirm(path, phone=PHONE, account=typed, TransTime="20261124115500")
    frozen_clock.advance(timedelta(days=60))
    await Privacy(site.gateway).erase(Msisdn(PHONE), actor="test")
    (money,) = await site.transactions()
    assert (money["payer"], money["account_number"]) == ("erased", "erased")
    (body,) = [row["body"] for row in await site.gateway.db.fetch("SELECT callback.body FROM callback")]
    assert json.loads(body)["BillRefNumber"] == "erased"


async def test_erasure_keeps_an_account_number_that_is_the_phone_and_says_so(
    site: C2bSite, frozen_clock: SetClock
) -> None:
    path, _ = await site.addresses()
    await site.api.call("PUT", f"/v1/account-numbers/{PHONE}", {})
    await site.confirm(path, phone=PHONE, account=PHONE, TransTime="20261124115500")
    frozen_clock.advance(timedelta(days=60))
    done = await Privacy(site.gateway).erase(Msisdn(PHONE), actor="test")
    assert ["account number" in left.why for left in done.left] == [True]
