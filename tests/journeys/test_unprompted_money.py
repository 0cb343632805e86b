"""Protects money without a prompt, from the payer's phone to the merchant: once, for the right account, or refused."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import SANDBOX, eventually
from mpesa_gateway_c2b.accounts import AccountNumbers
from tests.conftest import Harness
from tests.ledger import broken_invariants

PHONE = "254711000001"
SILENT = "254700000007"
"""Pays a push, and Daraja never calls back."""
TILL = SANDBOX | {"mpesa": SANDBOX["mpesa"] | {"till_number": "5123456"}}


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    values["simulator"] |= {"callback_delay": 0.05}
    return values


async def register(harness: Harness, shortcode: str = "174379", **more: Any) -> None:
    found = (await harness.api.call("POST", f"/v1/merchant/shortcodes/{shortcode}/c2b", more)).data
    assert found["state"] == "registered"


async def pay(harness: Harness, **more: Any) -> dict[str, Any]:
    """A payer pays the shortcode. Returns the payment as the simulator has it."""
    body = {"phone": PHONE, "amount": 500, "shortcode": "174379", "account_number": "House 7"} | more
    paid: dict[str, Any] = (await harness.api.call("POST", "/v1/simulator/c2b", body)).data
    return paid


async def expect_amount(harness: Harness, amount: int) -> None:
    """Store the account number HOUSE 7."""
    assert (await harness.api.call("PUT", "/v1/account-numbers/House%207", {"expected": amount})).status == 200


async def received(harness: Harness) -> str:
    found = (await harness.api.call("GET", "/v1/account-numbers/House%207")).data
    return str(found["received"])


async def transactions(harness: Harness) -> list[tuple[str, str | None]]:
    """Return receipt and kind of subject of each transaction."""
    rows = await harness.gateway.db.fetch("SELECT receipt, subject_kind FROM transaction ORDER BY receipt")
    return [(row["receipt"], row["subject_kind"]) for row in rows]


async def is_repeated(harness: Harness, receipt: str) -> bool:
    """Return True if the confirmation of a receipt was answered again as accepted."""
    answer = await harness.api.call("POST", f"/simulator/control/c2b/{receipt}/confirmation")
    return bool(answer.data == {"status": 200})


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_push_whose_callback_is_lost_is_completed_by_its_confirmation(harness: Harness, version: str) -> None:
    habit = {"c2bregister": f"only_{version}"}
    assert (await harness.api.call("PATCH", "/simulator/control/habits", habit)).status == 200
    await register(harness)
    made = (await harness.api.pay(SILENT, 500, key="order")).data
    paid = await harness.api.settled(made["id"], "completed")
    assert await transactions(harness) == [(paid["receipt"], "payment")]
    assert await harness.delivered(1) == ["payment.completed"]
    assert await broken_invariants(harness.gateway) == {}


async def test_push_to_a_till_whose_callback_is_lost_is_completed_by_the_payers_digest(harness: Harness) -> None:
    assert (await harness.api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
    assert (await harness.api.call("PATCH", "/simulator/control/habits", {"c2bregister": "only_v1"})).status == 200
    await register(harness, "5123456")
    made = (await harness.api.pay(SILENT, 500, key="order")).data
    paid = await harness.api.settled(made["id"], "completed")
    assert await transactions(harness) == [(paid["receipt"], "payment")]


async def test_confirmation_twice_is_counted_once(harness: Harness) -> None:
    await register(harness, validation="rules")
    await expect_amount(harness, 500)
    paid = await pay(harness)
    await harness.receiver.wait_for(1, kind="account.paid")
    assert await is_repeated(harness, paid["receipt"])
    assert (await transactions(harness), await received(harness)) == ([(paid["receipt"], "account_number")], "500.00")
    assert (await harness.delivered(1)).count("account.paid") == 1


@pytest.mark.parametrize("response_type", ["Completed", "Cancelled"])
async def test_wrong_account_number_moves_no_money(harness: Harness, response_type: str) -> None:
    await register(harness, validation="rules", response_type=response_type)
    await expect_amount(harness, 500)
    refused = await pay(harness, account_number="House 8")
    assert (refused["state"], refused["code"]) == ("refused", "C2B00012")
    ledger = (await harness.api.call("GET", f"/simulator/control/ledger?phone={PHONE}")).data
    assert (ledger, await transactions(harness)) == ([], [])


@pytest.mark.usefixtures("initiated")
async def test_confirmation_lost_is_brought_by_pull(harness: Harness) -> None:
    assert (await harness.api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
    await register(harness, validation="rules")
    await expect_amount(harness, 500)
    paid = await pay(harness, confirmation="lost")
    assert await transactions(harness) == []
    assert (await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})).status == 200
    # The job of each minute.
    await harness.gateway.port(AccountNumbers).allocate_waiting()
    assert await received(harness) == "500.00"
    # The lost confirmation after all.
    assert await is_repeated(harness, paid["receipt"])
    assert (await transactions(harness), await received(harness)) == ([(paid["receipt"], "account_number")], "500.00")
    await harness.receiver.wait_for(1, kind="account.paid")
    assert await broken_invariants(harness.gateway) == {}


@pytest.mark.parametrize("shown", ["clear", "masked", "masked_close", "masked_long", "hashed", "hashed_masked"])
@pytest.mark.parametrize("names", ["all", "absent"])
async def test_unasked_money_is_recorded_with_every_form_of_the_payer(harness: Harness, shown: str, names: str) -> None:
    await register(harness)
    paid = await pay(harness, payer_shown=shown, names=names, kind="buy_goods", transaction_type="Buy Goods")

    async def is_recorded() -> bool:
        return await transactions(harness) == [(paid["receipt"], None)]

    await eventually(is_recorded)
