"""Money of a live receiver after its ownership was moved: unallocated money is the new owner's."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_transactions.api import Allocations, ReportedTransaction
from tests.plugins.credentials.two_env_site import PHONE, Account, TwoEnvSite, put, two_env_site


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[TwoEnvSite]:
    """A gateway between a sandbox and a live Daraja."""
    async with two_env_site(values) as found:
        yield found


async def _moved(site: TwoEnvSite) -> tuple[Account, Account, str]:
    """Return the former owner, the owner, and unallocated money that came before the move."""
    former, owner = await site.account(), await site.account()
    for shop in (former, owner):
        assert (await put(shop.live, "live")).status == 200
    assert (await former.live.pay(PHONE, key="first")).status == 201
    async with site.gateway.db.transaction():
        transaction_id = await _record(site, former)
    await site.gateway.services.get(ReceiverOwnership).move_receiver("600001", owner.merchant_id, actor="test")
    return former, owner, transaction_id


async def _record(site: TwoEnvSite, former: Account) -> str:
    gateway = site.gateway
    (money,) = await gateway.port(Allocations).receive(
        [
            ReportedTransaction(
                source="pull",
                env="live",
                number="600001",
                merchant_id=former.merchant_id,
                direction="in",
                receipt="TKM0000001",
                occurred_at=gateway.clock.now(),
                amount_cents=70_000,
                payer="254722000002",
            )
        ]
    )
    return money.transaction_id


async def test_money_recorded_during_a_move_is_the_new_owners(site: TwoEnvSite) -> None:
    former, owner = await site.account(), await site.account()
    for shop in (former, owner):
        assert (await put(shop.live, "live")).status == 200
    assert (await former.live.pay(PHONE, key="first")).status == 201
    db, ownership = site.gateway.db, site.gateway.services.get(ReceiverOwnership)
    waiting = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'transaction'::regclass)"
    async with db.transaction():
        transaction_id = await _record(site, former)
        # In a context of its own: the move is another transaction.
        move = asyncio.create_task(
            ownership.move_receiver("600001", owner.merchant_id, actor="test"), context=contextvars.Context()
        )
        assert await eventually(lambda: db.fetchval(waiting))
    await move
    found = await db.fetchval("SELECT merchant_id FROM transaction WHERE transaction_id = $1", transaction_id)
    assert found == owner.merchant_id


async def test_former_owner_of_a_receiver_does_not_decide_about_its_unallocated_money(site: TwoEnvSite) -> None:
    former, _, transaction_id = await _moved(site)
    answer = await former.live.call("POST", f"/v1/transactions/{transaction_id}/allocate", {"note": "mine still"})
    assert answer.status == 404, answer.body


async def test_former_owner_of_a_receiver_does_not_see_its_unallocated_money(site: TwoEnvSite) -> None:
    former, _, transaction_id = await _moved(site)
    listed = await former.live.call("GET", "/v1/transactions")
    assert transaction_id not in [each["id"] for each in listed.data]


async def test_new_owner_of_a_receiver_decides_about_its_unallocated_money(site: TwoEnvSite) -> None:
    _, owner, transaction_id = await _moved(site)
    answer = await owner.live.call("POST", f"/v1/transactions/{transaction_id}/allocate", {"note": "ours now"})
    assert answer.status == 200, answer.body


async def test_audit_log_of_the_new_owner_names_no_other_merchant(site: TwoEnvSite) -> None:
    former, owner, _ = await _moved(site)
    for api in (owner.live, owner.sandbox):
        logs = await api.call("GET", "/v1/audit/logs?limit=100")
        assert logs.status == 200
        assert former.merchant_id not in str(logs.body)


async def test_former_owner_takes_no_money_at_the_counter(site: TwoEnvSite) -> None:
    """The list of a former owner is what the counter shows."""
    former, _, transaction_id = await _moved(site)
    waiting = await former.live.call("GET", "/v1/transactions?direction=in&allocated=false&shortcode=600001")
    assert [each["id"] for each in waiting.data] == [], transaction_id


async def test_former_owner_of_a_receiver_does_not_refund_its_unallocated_money(site: TwoEnvSite) -> None:
    """A note makes the money its own, and then a reversal of it is sent."""
    former, _, transaction_id = await _moved(site)
    refused = await former.live.call("POST", "/v1/refunds", {"transaction_id": transaction_id})
    assert refused.status == 404, refused.body
    await former.live.call("POST", f"/v1/transactions/{transaction_id}/allocate", {"note": "mine still"})
    refused = await former.live.call("POST", "/v1/refunds", {"transaction_id": transaction_id})
    assert refused.status == 404, refused.body
