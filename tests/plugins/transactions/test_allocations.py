"""Protects the allocation of incoming money: the first rule that fits gives it its subject, once."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.testing.serving import Api, running_gateway, shop
from mpesa_gateway_transactions.api import (
    Allocated,
    AllocationRule,
    Allocations,
    FoundSubject,
    IncomingMoney,
    RecordedTransaction,
    ReportedTransaction,
    Subject,
    Transactions,
)
from tests.identifiers import identifier

RENT = Subject("rent", identifier("acc", 1))
NUMBER = "174379"

COUNTED: list[str] = []
"""Receipts whose rent is committed."""


async def find_rent(_: Runtime, money: Sequence[IncomingMoney]) -> list[FoundSubject | None]:
    """Money for the account number RENT is rent; BROKEN raises."""
    if any(one.account_number == "BROKEN" for one in money):
        raise RuntimeError("a broken rule")
    return [FoundSubject(RENT, one.merchant_id) if one.account_number == "RENT" else None for one in money]


async def count_rent(gateway: Runtime, allocated: Sequence[Allocated]) -> None:
    """Count the money when it is committed."""

    async def count() -> None:
        COUNTED.extend(one.receipt for one in allocated)

    await gateway.db.after_commit(count)


HOST = Plugin(
    name="rent",
    summary="Rents by account number.",
    contributes=(AllocationRule("rents", "rent", find_rent, count_rent),),
)


class TwoShops:
    """A gateway with a rule of its own, and two merchants."""

    def __init__(self, gateway: Gateway, api: Api, other: Api) -> None:
        self.gateway, self.api, self.other = gateway, api, other
        self.merchant_id = self.other_id = ""

    def report(self, receipt: str, **values: Any) -> ReportedTransaction:
        """A C2B confirmation of KES 500."""
        known: dict[str, Any] = {
            "source": "c2b",
            "env": "sandbox",
            "number": NUMBER,
            "merchant_id": self.merchant_id,
            "direction": "in",
            "receipt": receipt,
            "occurred_at": self.gateway.clock.now(),
            "amount_cents": 50_000,
            "payer": "2547*****020",
        }
        return ReportedTransaction(**(known | values))

    async def receive(self, *reports: ReportedTransaction) -> Sequence[RecordedTransaction]:
        async with self.gateway.db.transaction():
            return await self.gateway.port(Allocations).receive(reports)

    async def record(self, *reports: ReportedTransaction) -> Sequence[RecordedTransaction | None]:
        """Record reports without rules."""
        async with self.gateway.db.transaction():
            return await self.gateway.port(Transactions).record(reports)

    async def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The bodies of the published events of these kinds, oldest first."""
        rows = await self.gateway.db.fetch(
            "SELECT merchant_id, kind, event.body FROM event WHERE kind = ANY($1) ORDER BY event_id", list(kinds)
        )
        return [{"kind": row["kind"], "to": row["merchant_id"]} | msgspec.json.decode(row["body"]) for row in rows]

    async def rows(self, table: str) -> list[dict[str, Any]]:
        rows = await self.gateway.db.fetch(f"SELECT * FROM {table}")  # noqa: S608 - names in this file
        return [dict(row) for row in rows]


@pytest.fixture
async def shops(values: dict[str, Any]) -> AsyncGenerator[TwoShops]:
    async with (
        running_gateway(values, plugins=(HOST,)) as (gateway, base),
        shop(gateway, base) as api,
        shop(gateway, base) as other,
    ):
        COUNTED.clear()
        shops = TwoShops(gateway, api, other)
        shops.merchant_id, shops.other_id = [
            (await each.call("GET", "/v1/merchant/me")).data["id"] for each in (api, other)
        ]
        yield shops


async def test_receive_own_reference_completes_a_failed_payment_whatever_its_status(shops: TwoShops) -> None:
    payment = (await shops.api.pay("254700000020", 500, key="a")).data
    await shops.gateway.db.execute(
        "UPDATE payment SET status = 'failed', failure_reason = 'expired', due_at = NULL WHERE payment_id = $1",
        payment["id"],
    )
    (one,) = await shops.receive(shops.report("TKC0000001", account_number=payment["reference"].lower()))
    assert one.subject == Subject("payment", payment["id"])
    paid = (await shops.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (paid["status"], paid["receipt"], paid["timeline"][-1]["cause"]) == ("completed", "TKC0000001", "c2b")
    (row,) = await shops.rows("transaction")
    assert (row["subject_id"], row["first_source"]) == (payment["id"], "c2b")
    (noted,) = await shops.rows("allocation")
    assert (noted["transaction_id"], noted["number"], noted["by"]) == (one.transaction_id, 1, "own_reference")
    # The same report again allocates nothing anew.
    await shops.receive(shops.report("TKC0000001", account_number=payment["reference"]))
    assert len(await shops.rows("allocation")) == 1


@pytest.mark.parametrize(
    "differs", [{"amount_cents": 49_900}, {"amount_cents": 50_050}, {"account_number": "ANOTHER"}, {"direction": "out"}]
)
async def test_receive_other_amount_reference_or_direction_completes_nothing(
    shops: TwoShops, differs: dict[str, Any]
) -> None:
    payment = (await shops.api.pay("254700000020", 500, key="a")).data
    report = shops.report("TKC0000001", **({"account_number": payment["reference"]} | differs))
    (one,) = await shops.receive(report)
    assert one.subject is None
    assert (await shops.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == "pending"
    assert await shops.rows("allocation") == []


async def test_receive_money_of_a_rule_is_allocated_and_its_plugin_told_once(shops: TwoShops) -> None:
    for number in range(10):
        same = shops.report(f"TKR{number:07}", account_number="RENT")
        found = await asyncio.gather(*(shops.receive(same) for _ in range(4)), return_exceptions=True)
        assert {one[0].subject for one in found if not isinstance(one, BaseException)} == {RENT}
    assert len(COUNTED) == len(await shops.rows("allocation")) == 10
    assert {row["subject_kind"] for row in await shops.rows("transaction")} == {"rent"}


async def test_receive_several_reports_with_a_payments_are_left_to_single_calls(shops: TwoShops) -> None:
    payment = (await shops.api.pay("254700000020", 500, key="a")).data
    both = [
        shops.report("TKR0000001", account_number="RENT"),
        shops.report("TKC0000001", account_number=payment["reference"]),
    ]
    with pytest.raises(ConcurrentUpdate):
        await shops.receive(*both)
    assert await shops.rows("transaction") == []
    assert [one.subject for each in both for one in await shops.receive(each)] == [
        RENT,
        Subject("payment", payment["id"]),
    ]
    # Known subjects are no obstacle.
    assert len(await shops.receive(*both)) == 2


async def test_receive_money_that_another_witness_recorded_first_is_allocated(shops: TwoShops) -> None:
    report = shops.report("TKR0000001", source="pull", account_number="RENT")
    await shops.record(report)
    # A report without an account number uses the recorded one.
    (one,) = await shops.receive(replace(report, source="status", account_number=None))
    assert (one.subject, one.is_new) == (RENT, False)


async def test_receive_stranger_or_unknown_receiver_is_unallocated_or_refused(shops: TwoShops) -> None:
    (one,) = await shops.receive(shops.report("TKC0000001", account_number="whatever"))
    assert (one.subject, one.is_new) == (None, True)
    with pytest.raises(ValueError, match="unknown receiver"):
        await shops.receive(shops.report("TKC0000002", number="999999"))
