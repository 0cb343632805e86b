"""Protects a live shortcode's money and payers from other merchants of the same gateway."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from tests.daraja import c2b_body
from tests.plugins.c2b.c2b_site import path_of
from tests.plugins.c2b.test_registration import LIVE, REGISTERED_BEFORE
from tests.plugins.credentials.two_env_site import Account, TwoEnvSite, put, two_env_site


@pytest.fixture
async def both(values: dict[str, Any]) -> AsyncGenerator[TwoEnvSite]:
    """This machine is a listed source of live callbacks."""
    values["callbacks"] = {"allowlist": ["127.0.0.1"], "sandbox_per_minute": 1_000_000}
    values["c2b"] = {"max_validations": 10}
    async with two_env_site(values) as found:
        yield found


async def registered(account: Account, path: str = LIVE, **wanted: Any) -> tuple[str, str]:
    """Register in live, and return the paths of confirmations and of validation requests."""
    found = (await account.live.call("POST", path, wanted)).data["addresses"]
    return path_of(found["confirmation"]), path_of(found["validation"])


async def ask(account: Account, path: str, **body: Any) -> str:
    answer = await account.live.call("POST", path, c2b_body(**{"shortcode": "600001", "account": "NOBODY"} | body))
    return str(answer.body["ResultCode"])


async def kind(site: TwoEnvSite, number: str = "600001") -> Any:
    return await site.gateway.db.fetchval("SELECT kind FROM receiver WHERE env = 'live' AND number = $1", number)


async def move(site: TwoEnvSite, account: Account, number: str = "600001") -> None:
    ownership = site.gateway.services.get(ReceiverOwnership)
    await ownership.move_receiver(number, account.merchant_id, actor="test")


@pytest.mark.parametrize("till", [None, "5123456"], ids=["paybill", "till"])
@pytest.mark.parametrize("is_owned", [True, False], ids=["owned", "without an owner"])
async def test_store_number_of_another_merchant_admits_no_money(
    both: TwoEnvSite, till: str | None, is_owned: bool
) -> None:
    """Safaricom calls any address, and a former user knows this one."""
    one, other = await both.account(), await both.account()
    number = till or "600001"
    assert (await put(one.live, "live", till_number=till)).status == 200
    if not is_owned:
        both.live.add_answers("c2bregister2", REGISTERED_BEFORE)
    path, question = await registered(one, f"/v1/merchant/shortcodes/{number}/c2b", validation="rules")
    assert (await put(other.live, "live", shortcode="600999", till_number=number)).status == 200
    foreign = c2b_body("TKN0000001", shortcode="600999", account="HOUSE 7")
    assert (await one.live.call("POST", path, foreign)).status == 403
    assert await ask(one, question, shortcode="600999") == "C2B00015"
    assert await both.gateway.db.fetchval("SELECT count(*) FROM transaction") == 0


async def test_store_number_of_the_owner_admits_its_tills_money_also_a_former_one(both: TwoEnvSite) -> None:
    one = await both.account()
    for store in ("600111", "600112"):
        assert (await put(one.live, "live", shortcode=store, till_number="5123456")).status == 200
    path, question = await registered(one, "/v1/merchant/shortcodes/5123456/c2b")
    for place, store in enumerate(("600111", "600112", "5123456")):
        assert await ask(one, question, shortcode=store) == "0"
        body = c2b_body(f"TKN000000{place}", shortcode=store, account="")
        assert (await one.live.call("POST", path, body)).status == 200


async def test_claim_of_a_till_as_a_paybill_by_another_merchant_refuses_no_money(both: TwoEnvSite) -> None:
    one, other = await both.account(), await both.account()
    assert (await put(other.live, "live", shortcode="5123456")).status == 200
    assert (await put(one.live, "live", shortcode="600111", till_number="5123456")).status == 200
    both.live.add_answers("c2bregister2", REGISTERED_BEFORE)
    path, question = await registered(one, "/v1/merchant/shortcodes/5123456/c2b")
    assert await kind(both, "5123456") == "paybill"
    assert await ask(one, question, shortcode="600111") == "0"
    body = c2b_body("TKN0000001", shortcode="600111", account="")
    assert (await one.live.call("POST", path, body)).status == 200
    assert await both.gateway.db.fetchval("SELECT count(*) FROM transaction") == 1


async def test_till_number_of_another_merchant_does_not_retype_a_receiver_without_owner(both: TwoEnvSite) -> None:
    """At a till, rules accept each account number."""
    one, other = await both.account(), await both.account()
    assert (await put(one.live, "live")).status == 200
    both.live.add_answers("c2bregister2", REGISTERED_BEFORE)
    _, question = await registered(one, validation="rules")
    assert (await put(other.live, "live", shortcode="600999", till_number="600001")).status == 200
    assert (await kind(both), await ask(one, question)) == ("paybill", "C2B00012")
    # Nor does a merchant of retired credentials lose its money.
    assert (await put(one.live, "live", shortcode="600002")).status == 200
    assert (await put(other.live, "live", shortcode="600998", till_number="600001")).status == 200
    assert await kind(both) == "paybill"


async def test_receiver_is_what_its_owner_says(both: TwoEnvSite) -> None:
    one, other = await both.account(), await both.account()
    assert (await put(other.live, "live", shortcode="5123456")).status == 200
    assert (await put(one.live, "live", shortcode="600111", till_number="5123456")).status == 200
    assert await kind(both, "5123456") == "paybill"
    await registered(one, "/v1/merchant/shortcodes/5123456/c2b")
    assert await kind(both, "5123456") == "till"
    await move(both, other, "5123456")
    assert await kind(both, "5123456") == "paybill"


async def test_receiver_moved_refuses_no_payer_by_the_rules_of_its_former_owner(both: TwoEnvSite) -> None:
    one, new = await both.account(), await both.account()
    assert (await put(one.live, "live")).status == 200
    _, question = await registered(one, validation="rules")
    assert await ask(one, question) == "C2B00012"
    assert (await put(new.live, "live")).status == 200
    await move(both, new)
    assert await ask(new, question) == "0"
    receiver_id = await both.gateway.db.fetchval("SELECT receiver_id FROM c2b_address")
    assert both.gateway.port(C2bAddresses).last_mode(receiver_id) == "accept"
    assert (await new.live.call("GET", LIVE)).data["validation"] == "accept"
    # Its own rules apply from its own registration.
    await registered(new, validation="rules")
    assert await ask(new, question) == "C2B00012"


async def test_questions_of_the_sandbox_leave_live_validation_alone(both: TwoEnvSite) -> None:
    one, other = await both.account(), await both.account()
    assert (await put(one.live, "live")).status == 200
    assert (await put(other.sandbox, "sandbox")).status == 200
    _, live = await registered(one, validation="rules")
    made = await other.sandbox.call("POST", LIVE, {"validation": "rules"})
    sandbox = path_of(made.data["addresses"]["validation"])

    async def flood() -> None:
        while True:
            await other.sandbox.call("POST", sandbox, c2b_body(shortcode="600001", account="NOBODY"))

    tasks = [asyncio.create_task(flood()) for _ in range(30)]
    try:
        codes = [await ask(one, live) for _ in range(20)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert set(codes) == {"C2B00012"}
