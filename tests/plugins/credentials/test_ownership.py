"""Protects the ownership of a live receiver: its first accepted call makes a merchant the only owner."""

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
from tests.plugins.credentials.two_env_site import (
    PHONE,
    RECONCILE,
    REGISTER,
    SPIKE_ARREST,
    Account,
    TwoEnvSite,
    put,
    two_env_site,
)
from tests.stored import default_shortcode

OWNER = "SELECT owner_id FROM receiver WHERE env = $1 AND number = $2"


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[TwoEnvSite]:
    """A gateway between a sandbox and a live Daraja."""
    async with two_env_site(values) as found:
        yield found


async def owner_of(site: TwoEnvSite, env: Env = "live", number: str = "600001") -> str | None:
    found: str | None = await site.gateway.db.fetchval(OWNER, env, number)
    return found


async def shops(site: TwoEnvSite, count: int = 2, env: Env = "live", **changes: Any) -> list[Account]:
    """Returns merchants with credentials for the same number."""
    made = [await site.account() for _ in range(count)]
    for shop in made:
        assert (await put(shop.api(env), env, **changes)).status == 200
    return made


async def push(shop: Account) -> int:
    """Request a payment. Returns the HTTP status."""
    return (await shop.live.pay(PHONE, key=f"k-{shop.merchant_id}")).status


async def register(shop: Account) -> int:
    """Register Pull. Returns the HTTP status."""
    return (await shop.live.call("POST", REGISTER)).status


@pytest.mark.parametrize("first", [push, register])
@pytest.mark.parametrize("till", [None, "5123456"])
async def test_receiver_first_accepted_call_makes_the_owner(
    site: TwoEnvSite, first: Callable[[Account], Coroutine[Any, Any, int]], till: str | None
) -> None:
    one, two = await shops(site, till_number=till)
    number = till or "600001"
    for shop in (two, one):
        # A token proves the app, not the number.
        assert (await shop.live.call("POST", "/v1/merchant/providers/mpesa/verify")).status == 200
    assert await owner_of(site, number=number) is None
    assert await first(one) in {200, 201}
    assert await owner_of(site, number=number) == one.merchant_id
    assert await push(two) == 409
    assert await register(two) == 409
    assert (await two.live.call("POST", RECONCILE, {})).status == 409
    assert (await two.live.call("POST", "/v1/payments/mpesa/check-status/TKN4A1B2C3")).status == 409
    refused = await two.live.pay(PHONE, key="why")
    assert (refused.error["code"], "receivers allow" in refused.error["message"]) == ("CONFLICT", True)
    assert number in refused.error["message"]
    assert await owner_of(site, number=number) == one.merchant_id
    assert len(site.live.requests_of("stkpush")) == (1 if first is push else 0)
    missing = (await two.live.call("GET", "/v1/merchant/providers")).body["meta"]["missing"]
    assert "receiver" in {lack["name"] for lack in missing}
    actions = [entry["action"] for entry in (await one.live.call("GET", "/v1/audit/logs")).data]
    assert actions.count("receiver.owned") == 1


@pytest.mark.parametrize("answer", [SPIKE_ARREST, fault("500.001.1001", "Wrong credentials"), (500, b""), (200, b"{}")])
async def test_receiver_call_not_accepted_makes_no_owner(site: TwoEnvSite, answer: Any) -> None:
    one, two = await shops(site)
    site.live.add_answers("stkpush", answer)
    await push(one)
    site.live.add_answers("pullregister", fault("500.001.1001", "Wrong credentials"))
    await register(one)
    assert await owner_of(site) is None
    assert await push(two) == 201
    assert await owner_of(site) == two.merchant_id


async def test_receiver_in_sandbox_has_no_owner_and_serves_every_merchant(site: TwoEnvSite) -> None:
    for shop in await shops(site, 3, "sandbox", shortcode="174379"):
        assert (await shop.sandbox.pay(PHONE, key="a")).status == 201
        assert (await shop.sandbox.call("POST", REGISTER)).status == 200
        assert (await shop.sandbox.call("POST", RECONCILE, {})).status == 200
    assert await owner_of(site, "sandbox", "174379") is None


async def test_receiver_owned_in_live_is_usable_in_sandbox(site: TwoEnvSite) -> None:
    one, two = await shops(site)
    assert await push(one) == 201
    await put(two.sandbox, "sandbox")
    assert (await two.sandbox.pay(PHONE, key="a")).status == 201


@pytest.mark.parametrize("call", [push, register])
async def test_receiver_concurrent_first_calls_make_one_owner(
    site: TwoEnvSite, call: Callable[[Account], Coroutine[Any, Any, int]]
) -> None:
    rivals = await shops(site, 6)
    go = site.live.hold("stkpush" if call is push else "pullregister")
    calls = [asyncio.create_task(call(shop)) for shop in rivals]
    await site.live.wait_for_requests("stkpush" if call is push else "pullregister", len(rivals))
    go.set()
    answers = await asyncio.gather(*calls)
    owner = await owner_of(site)
    assert owner in {shop.merchant_id for shop in rivals}
    if call is push:
        # Every push was sent before the owner was decided, so each payment is valid.
        assert set(answers) == {201}
    else:
        assert sorted(answers) == [200] + [409] * 5
        assert await site.gateway.db.fetchval("SELECT merchant_id FROM pull_registration") == owner
    owned = "SELECT count(*) FROM audit_entry WHERE action = 'receiver.owned'"
    assert await site.gateway.db.fetchval(owned) == 1


async def test_receiver_allowed_to_another_merchant_accepts_its_payments(site: TwoEnvSite) -> None:
    one, two = await shops(site)
    assert await push(one) == 201
    ownership = site.gateway.services.get(ReceiverOwnership)
    assert await push(two) == 409
    await ownership.allow_use("600001", two.merchant_id, is_allowed=True, actor="test")
    assert (await two.live.pay(PHONE, key="allowed")).status == 201
    # Only the owner reads statements.
    assert await register(two) == 409
    await ownership.allow_use("600001", two.merchant_id, is_allowed=False, actor="test")
    assert (await two.live.pay(PHONE, key="ended")).status == 409
    # Payments from before the end of use are still queried.
    payment_id = await site.gateway.db.fetchval(
        "SELECT payment_id FROM payment WHERE merchant_id = $1", two.merchant_id
    )
    assert (await two.live.call("POST", f"/v1/payments/{payment_id}/query")).status == 200
    assert await owner_of(site) == one.merchant_id
    users = {user.merchant_id: (user.is_owner, user.may_use) for user in await ownership.users("600001")}
    assert users == {one.merchant_id: (True, True), two.merchant_id: (False, False)}


async def test_receiver_moved_by_an_operator_serves_its_new_owner_only(site: TwoEnvSite) -> None:
    one, two = await shops(site)
    assert await push(one) == 201
    ownership = site.gateway.services.get(ReceiverOwnership)
    await ownership.move_receiver("600001", two.merchant_id, actor="test")
    assert await owner_of(site) == two.merchant_id
    assert (await two.live.pay(PHONE, key="mine")).status == 201
    assert await register(two) == 200
    assert (await one.live.pay(PHONE, key="no-more")).status == 409
    assert (await one.live.call("POST", RECONCILE, {})).status == 409
    sources = await site.gateway.services.get(Credentials).statement_sources()
    assert [source.merchant_id for source in sources] == [two.merchant_id]
    formers = await default_shortcode(site.gateway, one.merchant_id, "live")
    assert await site.gateway.services.get(ReconciliationService).run_due(formers) is False


async def test_receiver_owner_needs_credentials_for_the_number(site: TwoEnvSite) -> None:
    (one,) = await shops(site, 1)
    stranger = await site.account()
    ownership = site.gateway.services.get(ReceiverOwnership)
    for act in (
        ownership.move_receiver("600001", stranger.merchant_id, actor="test"),
        ownership.allow_use("600001", stranger.merchant_id, is_allowed=True, actor="test"),
    ):
        with pytest.raises(Conflict, match="no live credentials for 600001"):
            await act
    for number, merchant_id in (("600009", one.merchant_id), ("600001", "mer_nobody")):
        with pytest.raises(NotFound):
            await ownership.move_receiver(number, merchant_id, actor="test")
    assert await owner_of(site) is None


async def test_reconciliation_of_a_receiver_moved_during_a_run_is_refused(site: TwoEnvSite) -> None:
    one, two = await shops(site)
    assert await register(one) == 200
    go = site.live.hold("pullquery")
    running = asyncio.create_task(one.live.call("POST", RECONCILE, {}))
    await site.live.wait_for_requests("pullquery")
    await site.gateway.services.get(ReceiverOwnership).move_receiver("600001", two.merchant_id, actor="test")
    refused = await two.live.call("POST", RECONCILE, {})
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    go.set()
    assert (await running).data["status"] == "completed"
    assert (await two.live.call("POST", RECONCILE, {})).status == 200


async def test_reconciliation_by_the_owner_completes_payments_of_an_allowed_merchant(site: TwoEnvSite) -> None:
    """An allowed merchant reads no statement: the owner's runs find its lost callbacks."""
    one, two = await shops(site)
    assert await register(one) == 200
    await site.gateway.services.get(ReceiverOwnership).allow_use(
        "600001", two.merchant_id, is_allowed=True, actor="test"
    )
    mine = (await one.live.pay(PHONE, key="mine")).data
    theirs = (await two.live.pay(PHONE, key="theirs")).data
    statement_line = {
        "transactionId": "TKN4A1B2C3",
        "trxDate": f"{site.gateway.clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
        "msisdn": PHONE,
        "sender": "MPESA",
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": theirs["reference"],
        "amount": "500.0",
        "organizationname": "Shop",
    }
    site.live.add_answers(
        "pullquery", (200, {"ResponseCode": "1000", "ResponseMessage": "Success", "Response": [[statement_line]]})
    )
    run = (await one.live.call("POST", RECONCILE, {})).data
    # The payments of other merchants are not counted for the owner.
    assert (run["status"], run["lines"], run["recovered"]) == ("completed", 1, 0)
    found = (await two.live.call("GET", f"/v1/payments/{theirs['id']}")).data
    assert (found["status"], found["receipt"]) == ("completed", "TKN4A1B2C3")
    assert (await one.live.call("GET", f"/v1/payments/{mine['id']}")).data["status"] == "pending"


async def test_statement_line_of_another_merchant_cannot_be_assigned(site: TwoEnvSite) -> None:
    one, two = await shops(site)
    assert await register(one) == 200
    allow = site.gateway.services.get(ReceiverOwnership).allow_use
    await allow("600001", two.merchant_id, is_allowed=True, actor="test")
    mine = (await one.live.pay(PHONE, key="mine", reference="table 4")).data
    theirs = (await two.live.pay(PHONE, key="theirs", reference="table 4")).data
    statement_line = {
        "transactionId": "TKN4A1B2C3",
        "trxDate": f"{site.gateway.clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
        "msisdn": PHONE,
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": "table 4",
        "amount": "500.0",
    }
    site.live.add_answers(
        "pullquery", (200, {"ResponseCode": "1000", "ResponseMessage": "Success", "Response": [[statement_line]]})
    )
    run = (await one.live.call("POST", RECONCILE, {})).data
    assert (run["ambiguous"], run["recovered"]) == (1, 0)
    line_id = await site.gateway.db.fetchval("SELECT line_id FROM noted_line")
    path = f"/v1/payments/mpesa/statement-lines/{line_id}/assign"
    # The line matches payments of both: the owner may not decide, and the allowed merchant may not see it.
    for shop, payment, status in ((one, mine, 409), (one, theirs, 404), (two, theirs, 404), (two, mine, 404)):
        refused = await shop.live.call("POST", path, {"payment_id": payment["id"]})
        assert refused.status == status, (refused.status, payment["reference"])
    # An allowed merchant may neither register Pull nor reconcile, and neither may a former one.
    for is_allowed in (True, False):
        await allow("600001", two.merchant_id, is_allowed=is_allowed, actor="test")
        assert await register(two) == 409
        assert (await two.live.call("POST", RECONCILE, {})).status == 409
    assert {(await one.live.call("GET", f"/v1/payments/{mine['id']}")).data["status"]} == {"pending"}
