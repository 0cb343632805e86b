"""Protects the way from a payer to the merchant, with the simulator as Daraja."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import Answer, eventually
from tests.conftest import Harness

PHONE = "254711000001"


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Safaricom asks for validation."""
    values["simulator"] |= {"external_validation": True, "callback_delay": 0.05}
    return values


async def pays(harness: Harness, **more: Any) -> Answer:
    """A payer pays the shortcode without a prompt."""
    body = {"phone": PHONE, "amount": 500, "shortcode": "174379", "account_number": "House 7"} | more
    return await harness.api.call("POST", "/simulator/control/c2b", body)


async def register(harness: Harness, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = (await harness.api.call("POST", "/v1/merchant/shortcodes/174379/c2b", more)).data
    return found


async def count(harness: Harness, table: str) -> int:
    return int(await harness.gateway.db.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608 - a name from a test


async def test_payer_pays_the_account_number_and_the_merchant_hears(harness: Harness) -> None:
    assert (await register(harness, validation="rules"))["state"] == "registered"
    put = await harness.api.call("PUT", "/v1/account-numbers/House%207", {"expected": 500})
    assert put.status == 200
    assert (await pays(harness)).status < 300
    (told,) = await harness.receiver.wait_for(1, kind="account.paid")
    assert (told.json["data"]["account_number"], told.json["data"]["received"]) == ("HOUSE 7", "500.00")
    assert await count(harness, "transaction") == 1


async def test_wrong_account_number_moves_no_money(harness: Harness) -> None:
    await register(harness, validation="rules")
    refused = await pays(harness, account_number="House 8")
    assert "C2B00012" in str(refused.body) or refused.status >= 400
    assert await count(harness, "transaction") == 0


async def test_push_of_a_registered_shortcode_is_one_payment_with_two_witnesses(harness: Harness) -> None:
    await register(harness, validation="rules")
    payment = (await harness.api.pay(PHONE, 500, key="k")).data
    assert (await harness.api.settled(payment["id"]))["status"] == "completed"

    async def both() -> bool:
        kinds = await harness.gateway.db.fetch("SELECT kind FROM callback WHERE verdict = 'applied'")
        return sorted(row["kind"] for row in kinds) == ["c2b", "stk"]

    await eventually(both)
    assert await count(harness, "transaction") == 1
    assert await harness.gateway.db.fetchval("SELECT subject_id FROM transaction") == payment["id"]
