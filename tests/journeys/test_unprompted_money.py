"""Protects money without a prompt, from the payer's phone to the merchant: once, for the right account, or refused."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.testing.serving import SANDBOX, Answer, Api, eventually
from mpesa_gateway_c2b.accounts import AccountNumbers
from tests.conftest import Harness
from tests.ledger import broken_invariants

PHONE = "254711000001"
ASKING = "254700000020"
"""Does not answer a prompt."""
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
    assert await harness.delivered(2) == ["payment.completed", "transaction.allocated"]
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


class Cashier:
    """A till of the shop, with an API key of its own."""

    def __init__(self, api: Api, key_id: str) -> None:
        self.api, self.actor = api, f"key:{key_id}"

    async def claim(self, transaction_id: str, **body: Any) -> Answer:
        return await self.api.call("POST", f"/v1/transactions/{transaction_id}/allocate", body)


@pytest.fixture
async def cashiers(harness: Harness) -> AsyncGenerator[tuple[Cashier, Cashier]]:
    gateway, merchant_id = harness.gateway, (await harness.api.call("GET", "/v1/merchant/me")).data["id"]

    async def hire(name: str) -> Cashier:
        key, secret = await gateway.api_keys.create(
            merchant_id, name=name, scopes=gateway.scopes.of_merchants, env="sandbox", actor="test"
        )
        return Cashier(Api(harness.base, secret.reveal()), key.key_id)

    both = await hire("till one"), await hire("till two")
    yield both
    for cashier in both:
        await cashier.api.close()


async def claim_at_once(
    harness: Harness, cashiers: tuple[Cashier, Cashier], receipt: str, claims: list[dict[str, Any]]
) -> int:
    """Both claim the money of a receipt at once. Returns the winner's place; the loser reads who has it, and when."""

    async def is_recorded() -> bool:
        return receipt in dict(await transactions(harness))

    await eventually(is_recorded)
    (found,) = (await harness.api.call("GET", f"/v1/transactions?receipt={receipt}")).data
    answers = await asyncio.gather(
        *(cashier.claim(found["id"], **claim) for cashier, claim in zip(cashiers, claims, strict=True))
    )
    assert sorted(answer.status for answer in answers) == [200, 409], [answer.body for answer in answers]
    winner = [answer.status for answer in answers].index(200)
    shown, refused = answers[winner].data, answers[1 - winner].error["message"]
    (allocation,) = shown["allocations"]
    assert allocation["by"] == cashiers[winner].actor
    assert f"by {allocation['by']} at {allocation['at']}" in refused
    # Both may repeat their claims: nothing changes.
    for place, cashier in enumerate(cashiers):
        assert (await cashier.claim(found["id"], **claims[place])).status == answers[place].status
    assert (await harness.api.call("GET", f"/v1/transactions/{found['id']}")).data["allocations"] == [allocation]
    return winner


async def test_two_cashiers_claim_one_payment_and_exactly_one_gets_it(
    harness: Harness, cashiers: tuple[Cashier, Cashier]
) -> None:
    await register(harness)
    for number in range(10):
        paid = await pay(harness, account_number=f"Table {number}")
        claims = [{"note": f"order {number} of till one"}, {"note": f"order {number} of till two"}]
        await claim_at_once(harness, cashiers, paid["receipt"], claims)
    assert {kind for _, kind in await transactions(harness)} == {"resolved"}
    assert await broken_invariants(harness.gateway) == {}


async def test_two_cashiers_claim_one_payment_for_their_orders_and_one_order_is_paid(
    harness: Harness, cashiers: tuple[Cashier, Cashier]
) -> None:
    await register(harness)
    for number in range(4):
        amount, table = 500 + number, f"TABLE {number}"
        # The shop has used one reference for two orders: M-Pesa's report fits both.
        orders = [
            (await harness.api.pay(ASKING, amount, key=f"{number} {till}", reference=table)).data for till in ("a", "b")
        ]
        paid = await pay(harness, phone=ASKING, amount=amount, account_number=table)
        claims = [{"payment_id": order["id"]} for order in orders]
        winner = await claim_at_once(harness, cashiers, paid["receipt"], claims)
        won, lost = orders[winner], orders[1 - winner]
        ended = await harness.api.settled(won["id"], "completed")
        assert ended["receipt"] == paid["receipt"]
        assert (await harness.api.call("GET", f"/v1/payments/{lost['id']}")).data["receipt"] is None
    kinds = await harness.delivered(4)
    assert kinds.count("payment.completed") == 4
    assert await broken_invariants(harness.gateway) == {}
