"""Who owns a live receiver: the first merchant about whose call Safaricom accepted, decided in Postgres."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_reconciliation.service import ReconciliationService
from tests.daraja import fault
from tests.plugins.credentials.two_worlds import (
    PHONE,
    RECONCILE,
    REGISTER,
    SPIKE_ARREST,
    Account,
    Worlds,
    put,
    two_worlds,
)
from tests.stored import default_shortcode

OWNER = "SELECT owner_id FROM receiver WHERE env = $1 AND number = $2"


@pytest.fixture
async def worlds(values: dict[str, Any]) -> AsyncGenerator[Worlds]:
    """A gateway between two Darajas."""
    async with two_worlds(values) as found:
        yield found


async def owner_of(worlds: Worlds, env: Env = "live", number: str = "600001") -> str | None:
    """The owner of a receiver."""
    found: str | None = await worlds.gateway.db.fetchval(OWNER, env, number)
    return found


async def shops(worlds: Worlds, count: int = 2, env: Env = "live", **changes: Any) -> list[Account]:
    """Merchants that have stored credentials for the same number."""
    made = [await worlds.account() for _ in range(count)]
    for shop in made:
        assert (await put(shop.api(env), env, **changes)).status == 200
    return made


async def push(shop: Account) -> int:
    """Ask for a payment; returns the HTTP status."""
    return (await shop.live.pay(PHONE, key=f"k-{shop.merchant_id}")).status


async def register(shop: Account) -> int:
    """Register Pull; returns the HTTP status."""
    return (await shop.live.call("POST", REGISTER)).status


@pytest.mark.parametrize("first", [push, register])
@pytest.mark.parametrize("till", [None, "5123456"])
async def test_the_first_accepted_call_makes_the_owner(
    worlds: Worlds, first: Callable[[Account], Coroutine[Any, Any, int]], till: str | None
) -> None:
    one, two = await shops(worlds, till_number=till)
    number = till or "600001"
    for shop in (two, one):
        # A token proves only the app.
        assert (await shop.live.call("POST", "/v1/merchant/providers/mpesa/verify")).status == 200
    assert await owner_of(worlds, number=number) is None
    assert await first(one) in {200, 201}
    assert await owner_of(worlds, number=number) == one.merchant_id
    assert await push(two) == 409
    assert await register(two) == 409
    assert (await two.live.call("POST", RECONCILE, {})).status == 409
    assert (await two.live.call("POST", "/v1/payments/mpesa/check-status/TKN4A1B2C3")).status == 409
    refused = await two.live.pay(PHONE, key="why")
    assert (refused.error["code"], "receivers allow" in refused.error["message"]) == ("CONFLICT", True)
    assert number in refused.error["message"]
    assert await owner_of(worlds, number=number) == one.merchant_id
    assert len(worlds.live.of("stkpush")) == (1 if first is push else 0)
    missing = (await two.live.call("GET", "/v1/merchant/providers")).body["meta"]["missing"]
    assert "receiver" in {lack["name"] for lack in missing}
    actions = [entry["action"] for entry in (await one.live.call("GET", "/v1/audit/logs")).data]
    assert actions.count("receiver.owned") == 1


@pytest.mark.parametrize("said", [SPIKE_ARREST, fault("500.001.1001", "Wrong credentials"), (500, b""), (200, b"{}")])
async def test_a_call_that_was_not_accepted_makes_no_owner(worlds: Worlds, said: Any) -> None:
    one, two = await shops(worlds)
    worlds.live.say("stkpush", said)
    await push(one)
    worlds.live.say("pullregister", fault("500.001.1001", "Wrong credentials"))
    await register(one)
    assert await owner_of(worlds) is None
    assert await push(two) == 201
    assert await owner_of(worlds) == two.merchant_id


async def test_sandbox_numbers_have_no_owner_and_serve_everybody(worlds: Worlds) -> None:
    for shop in await shops(worlds, 3, "sandbox", shortcode="174379"):
        assert (await shop.sandbox.pay(PHONE, key="a")).status == 201
        assert (await shop.sandbox.call("POST", REGISTER)).status == 200
        assert (await shop.sandbox.call("POST", RECONCILE, {})).status == 200
    assert await owner_of(worlds, "sandbox", "174379") is None


async def test_an_owned_live_number_is_free_in_the_sandbox(worlds: Worlds) -> None:
    one, two = await shops(worlds)
    assert await push(one) == 201
    await put(two.sandbox, "sandbox")
    assert (await two.sandbox.pay(PHONE, key="a")).status == 201


@pytest.mark.parametrize("call", [push, register])
async def test_of_concurrent_first_calls_one_makes_the_owner(
    worlds: Worlds, call: Callable[[Account], Coroutine[Any, Any, int]]
) -> None:
    rivals = await shops(worlds, 6)
    go = worlds.live.hold("stkpush" if call is push else "pullregister")
    calls = [asyncio.create_task(call(shop)) for shop in rivals]
    await worlds.live.asked_about("stkpush" if call is push else "pullregister", len(rivals))
    go.set()
    answers = await asyncio.gather(*calls)
    owner = await owner_of(worlds)
    assert owner in {shop.merchant_id for shop in rivals}
    if call is push:
        # Each payer was asked before an owner was known: each payment stands.
        assert set(answers) == {201}
    else:
        assert sorted(answers) == [200] + [409] * 5
        assert await worlds.gateway.db.fetchval("SELECT merchant_id FROM pull_registration") == owner
    owned = "SELECT count(*) FROM audit_entry WHERE action = 'receiver.owned'"
    assert await worlds.gateway.db.fetchval(owned) == 1


async def test_an_operator_lets_another_merchant_use_a_receiver(worlds: Worlds) -> None:
    one, two = await shops(worlds)
    assert await push(one) == 201
    ownership = worlds.gateway.services.get(ReceiverOwnership)
    assert await push(two) == 409
    await ownership.allow_use("600001", two.merchant_id, is_allowed=True, actor="test")
    assert (await two.live.pay(PHONE, key="allowed")).status == 201
    # Statements stay the owner's.
    assert await register(two) == 409
    await ownership.allow_use("600001", two.merchant_id, is_allowed=False, actor="test")
    assert (await two.live.pay(PHONE, key="ended")).status == 409
    # What it asked for while it could is asked about on.
    payment_id = await worlds.gateway.db.fetchval(
        "SELECT payment_id FROM payment WHERE merchant_id = $1", two.merchant_id
    )
    assert (await two.live.call("POST", f"/v1/payments/{payment_id}/query")).status == 200
    assert await owner_of(worlds) == one.merchant_id
    users = {user.merchant_id: (user.is_owner, user.may_use) for user in await ownership.users("600001")}
    assert users == {one.merchant_id: (True, True), two.merchant_id: (False, False)}


async def test_an_operator_moves_the_ownership(worlds: Worlds) -> None:
    one, two = await shops(worlds)
    assert await push(one) == 201
    ownership = worlds.gateway.services.get(ReceiverOwnership)
    await ownership.move_receiver("600001", two.merchant_id, actor="test")
    assert await owner_of(worlds) == two.merchant_id
    assert (await two.live.pay(PHONE, key="mine")).status == 201
    assert await register(two) == 200
    assert (await one.live.pay(PHONE, key="no-more")).status == 409
    assert (await one.live.call("POST", RECONCILE, {})).status == 409
    sources = await worlds.gateway.services.get(Credentials).statement_sources()
    assert [source.merchant_id for source in sources] == [two.merchant_id]
    formers = await default_shortcode(worlds.gateway, one.merchant_id, "live")
    assert await worlds.gateway.services.get(ReconciliationService).run_due(formers) is False


async def test_an_owner_is_a_merchant_with_credentials_for_the_number(worlds: Worlds) -> None:
    (one,) = await shops(worlds, 1)
    stranger = await worlds.account()
    ownership = worlds.gateway.services.get(ReceiverOwnership)
    for act in (
        ownership.move_receiver("600001", stranger.merchant_id, actor="test"),
        ownership.allow_use("600001", stranger.merchant_id, is_allowed=True, actor="test"),
    ):
        with pytest.raises(Conflict, match="no live credentials for 600001"):
            await act
    for number, merchant_id in (("600009", one.merchant_id), ("600001", "mer_nobody")):
        with pytest.raises(NotFound):
            await ownership.move_receiver(number, merchant_id, actor="test")
    assert await owner_of(worlds) is None


async def test_one_run_of_a_live_receiver_at_a_time_whoever_owns_it(worlds: Worlds) -> None:
    one, two = await shops(worlds)
    assert await register(one) == 200
    go = worlds.live.hold("pullquery")
    running = asyncio.create_task(one.live.call("POST", RECONCILE, {}))
    await worlds.live.asked_about("pullquery")
    await worlds.gateway.services.get(ReceiverOwnership).move_receiver("600001", two.merchant_id, actor="test")
    refused = await two.live.call("POST", RECONCILE, {})
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    go.set()
    assert (await running).data["status"] == "completed"
    assert (await two.live.call("POST", RECONCILE, {})).status == 200


async def test_the_owners_run_completes_the_payments_of_a_user(worlds: Worlds) -> None:
    """A user reads no statement: its lost callbacks are found by the owner's runs, and never paid to the owner."""
    one, two = await shops(worlds)
    assert await register(one) == 200
    await worlds.gateway.services.get(ReceiverOwnership).allow_use(
        "600001", two.merchant_id, is_allowed=True, actor="test"
    )
    mine = (await one.live.pay(PHONE, key="mine")).data
    theirs = (await two.live.pay(PHONE, key="theirs")).data
    line = {
        "transactionId": "TKN4A1B2C3",
        "trxDate": f"{worlds.gateway.clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
        "msisdn": PHONE,
        "sender": "MPESA",
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": theirs["reference"],
        "amount": "500.0",
        "organizationname": "Shop",
    }
    worlds.live.say("pullquery", (200, {"ResponseCode": "1000", "ResponseMessage": "Success", "Response": [[line]]}))
    run = (await one.live.call("POST", RECONCILE, {})).data
    # The owner does not see whose payment it is.
    assert (run["status"], run["lines"], run["recovered"]) == ("completed", 1, 0)
    found = (await two.live.call("GET", f"/v1/payments/{theirs['id']}")).data
    assert (found["status"], found["receipt"]) == ("completed", "TKN4A1B2C3")
    assert (await one.live.call("GET", f"/v1/payments/{mine['id']}")).data["status"] == "pending"


async def test_neither_the_owner_nor_a_user_of_a_receiver_assigns_the_others_money(worlds: Worlds) -> None:
    one, two = await shops(worlds)
    assert await register(one) == 200
    allow = worlds.gateway.services.get(ReceiverOwnership).allow_use
    await allow("600001", two.merchant_id, is_allowed=True, actor="test")
    mine = (await one.live.pay(PHONE, key="mine", reference="table 4")).data
    theirs = (await two.live.pay(PHONE, key="theirs", reference="table 4")).data
    line = {
        "transactionId": "TKN4A1B2C3",
        "trxDate": f"{worlds.gateway.clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
        "msisdn": PHONE,
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": "table 4",
        "amount": "500.0",
    }
    worlds.live.say("pullquery", (200, {"ResponseCode": "1000", "ResponseMessage": "Success", "Response": [[line]]}))
    run = (await one.live.call("POST", RECONCILE, {})).data
    assert (run["ambiguous"], run["recovered"]) == (1, 0)
    line_id = await worlds.gateway.db.fetchval("SELECT line_id FROM noted_line")
    path = f"/v1/payments/mpesa/statement-lines/{line_id}/assign"
    # It fits the payments of both: the owner does not decide for itself, and the line is none of the user's.
    for shop, payment, status in ((one, mine, 409), (one, theirs, 404), (two, theirs, 404), (two, mine, 404)):
        refused = await shop.live.call("POST", path, {"payment_id": payment["id"]})
        assert refused.status == status, (refused.status, payment["reference"])
    # A user neither registers for Pull nor reads the statement, before and after its use has ended.
    for is_allowed in (True, False):
        await allow("600001", two.merchant_id, is_allowed=is_allowed, actor="test")
        assert await register(two) == 409
        assert (await two.live.call("POST", RECONCILE, {})).status == 409
    assert {(await one.live.call("GET", f"/v1/payments/{mine['id']}")).data["status"]} == {"pending"}
