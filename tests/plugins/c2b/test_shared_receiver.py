"""Protects the money of a live shortcode's owner and of a merchant that uses it: each receipt is one merchant's."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import SetClock, SystemClock
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_transactions.announcing import AnnouncementSweep
from mpesa_gateway_transactions.manual import ManualAllocation
from mpesa_gateway_transactions.schemas import Allocate
from tests.daraja import c2b_body, stk_callback
from tests.ledger import broken_invariants
from tests.plugins.c2b.c2b_site import path_of
from tests.plugins.c2b.test_push_money import PAID, PATH
from tests.plugins.credentials.two_env_site import Account, TwoEnvSite, put, two_env_site

PHONE, OTHER = "254708374149", "254711000001"
RECEIPT = "TKN4A1B2C3"


@dataclass(frozen=True)
class Shared:
    """A paybill with its owner, who has the account number HOUSE 7, and a merchant that may use it."""

    envs: TwoEnvSite
    owner: Account
    user: Account
    confirmation: str
    clock: SetClock

    async def push(self, phone: str = PHONE, reference: str = "HOUSE 7", amount: int = 500) -> dict[str, Any]:
        data: dict[str, Any] = (await self.user.live.pay(phone, key="k-1", reference=reference, amount=amount)).data
        return data

    async def confirm(self, account: str = "House 7", phone: str | None = None) -> None:
        body = c2b_body(RECEIPT, shortcode="600001", account=account, phone=phone)
        assert (await self.owner.live.call("POST", self.confirmation, body)).status == 200

    async def call_back(self, payment: dict[str, Any]) -> None:
        path = path_of(self.envs.live.requests_of("stkpush")[-1]["CallBackURL"])
        body = stk_callback(payment["provider_ref"], receipt=RECEIPT, phone=int(PHONE))
        assert (await self.user.live.call("POST", path, body)).status == 200

    async def status(self, payment: dict[str, Any]) -> str:
        return str((await self.user.live.call("GET", f"/v1/payments/{payment['id']}")).data["status"])

    async def received(self) -> str:
        return str((await self.owner.live.call("GET", PATH)).data["received"])

    async def allocate(self) -> int:
        return await self.envs.gateway.port(AccountNumbers).allocate_waiting()

    async def sweep(self) -> None:
        await self.envs.gateway.port(AnnouncementSweep).run()

    def wait(self, seconds: int) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    async def events(self, account: Account) -> list[str]:
        rows = await self.envs.gateway.db.fetch(
            "SELECT kind FROM event WHERE merchant_id = $1 AND is_public ORDER BY event_id", account.merchant_id
        )
        return [row["kind"] for row in rows]

    async def bodies(self, field: str, account: Account) -> list[Any]:
        """Return a field of the data of each event."""
        rows = await self.envs.gateway.db.fetch(
            "SELECT event.body FROM event WHERE merchant_id = $1 AND is_public ORDER BY event_id", account.merchant_id
        )
        return [json.loads(row["body"])["data"].get(field) for row in rows]


@pytest.fixture
async def shared(values: dict[str, Any]) -> AsyncGenerator[Shared]:
    values["callbacks"] = {"allowlist": ["127.0.0.1"]}
    clock = SetClock(SystemClock().now())
    async with two_env_site(values, clock) as envs:
        owner, user = await envs.account(), await envs.account()
        assert (await put(owner.live, "live")).status == 200
        registered = await owner.live.call("POST", "/v1/merchant/shortcodes/600001/c2b", {})
        assert (await owner.live.call("PUT", PATH, {"expected": 500})).status == 200
        assert (await put(user.live, "live")).status == 200
        await envs.gateway.port(ReceiverOwnership).allow_use("600001", user.merchant_id, is_allowed=True, actor="test")
        yield Shared(envs, owner, user, path_of(registered.data["addresses"]["confirmation"]), clock)
        assert await broken_invariants(envs.gateway) == {}


@pytest.mark.parametrize("order", [("c2b", "callback"), ("callback", "c2b")], ids=" then ".join)
@pytest.mark.parametrize("shown", [None, "2547 ***** 149", PHONE])
async def test_money_of_a_users_push_is_the_users_in_every_order(
    shared: Shared, order: tuple[str, str], shown: str | None
) -> None:
    payment = await shared.push()
    for report in order:
        await (shared.confirm(phone=shown) if report == "c2b" else shared.call_back(payment))
        await shared.allocate()
    shared.wait(120)
    await shared.sweep()
    assert (await shared.status(payment), await shared.received()) == ("completed", "0.00")
    assert await shared.events(shared.owner) == []


@pytest.mark.parametrize(("asked", "shown"), [(PHONE, "2547 ***** 149"), (PHONE, PHONE), (PHONE, None), (OTHER, None)])
@pytest.mark.parametrize("seconds", [0, 60])
async def test_money_of_the_owners_account_is_held_for_a_users_push_for_a_short_time(
    shared: Shared, asked: str, shown: str | None, seconds: int
) -> None:
    payment = await shared.push(asked)
    shared.wait(seconds)
    await shared.confirm(phone=shown)
    assert await shared.allocate() == 0
    # No evidence but its callback gives the push the owner's money.
    assert (await shared.status(payment), await shared.received()) == ("pending", "0.00")
    # The push is no longer recent, or the money is due to be announced.
    shared.wait(60 if seconds else 110)
    await shared.sweep()
    assert await shared.allocate() == (1 if seconds else 0)
    assert (await shared.status(payment), await shared.received()) == ("pending", "500.00")
    assert sorted(await shared.events(shared.owner)) == ["account.paid", "transaction.allocated"]


@pytest.mark.parametrize(
    ("phone", "reference", "amount"), [(OTHER, "HOUSE 7", 500), (PHONE, "HOUSE 8", 500), (PHONE, "HOUSE 7", 501)]
)
async def test_money_that_fits_no_users_push_counts_at_once(
    shared: Shared, phone: str, reference: str, amount: int
) -> None:
    await shared.push(phone, reference, amount)
    await shared.confirm(phone=PHONE)
    assert await shared.received() == "500.00"


async def test_money_of_a_users_push_that_a_query_completed_counts_to_no_account(shared: Shared) -> None:
    payment = await shared.push()
    await shared.confirm()
    shared.envs.live.add_answers("stkquery", PAID)
    await shared.user.live.call("POST", f"/v1/payments/{payment['id']}/query")
    shared.wait(120)
    assert await shared.allocate() == 0
    assert (await shared.status(payment), await shared.received()) == ("completed", "0.00")


@pytest.mark.parametrize("by", ["callback", "query, then callback", "person"])
async def test_owner_that_heard_of_a_users_money_hears_whose_it_is(shared: Shared, by: str) -> None:
    payment = await shared.push(reference="TABLE 4")
    shared.wait(60)
    await shared.confirm("TABLE 4", phone=None)
    shared.wait(120)
    await shared.sweep()
    assert await shared.events(shared.owner) == ["transaction.received"]
    if by == "query, then callback":
        shared.envs.live.add_answers("stkquery", PAID)
        await shared.user.live.call("POST", f"/v1/payments/{payment['id']}/query")
    if by == "person":
        money = await shared.envs.gateway.db.fetchval("SELECT transaction_id FROM transaction")
        manual = shared.envs.gateway.services.get(ManualAllocation)
        await manual.allocate(None, "live", money, Allocate(payment_id=payment["id"], note="seen"), actor="a person")
    for _ in range(2):
        await shared.call_back(payment)
    assert await shared.events(shared.owner) == ["transaction.received", "transaction.allocated"]
    assert await shared.events(shared.user) == ["payment.completed"]
    assert await shared.bodies("previously_received", shared.user) == [False]
    assert await shared.bodies("allocated_to", shared.owner) == [None, {"type": "payment", "id": payment["id"]}]


async def test_owner_whose_own_payment_gets_announced_money_hears_it_once(shared: Shared) -> None:
    payment = (await shared.owner.live.pay(PHONE, key="k-1", reference="TABLE 4", amount=500)).data
    await shared.confirm("TABLE 4", phone="2547 ***** 140")
    shared.wait(120)
    await shared.sweep()
    await shared.call_back(payment)
    assert await shared.events(shared.owner) == ["transaction.received", "payment.completed"]
    assert await shared.bodies("previously_received", shared.owner) == [None, True]
