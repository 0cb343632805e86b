"""Protects allocation by people: of two people the first wins, and the second learns who that was."""

import asyncio
import os
from typing import Any

import pytest

from mpesa_gateway.errors import Conflict
from mpesa_gateway_transactions.recording import TransactionRecorder
from mpesa_gateway_transactions.schemas import Allocate
from mpesa_gateway_transactions.service import TransactionService
from tests.ledger import broken_invariants
from tests.plugins.transactions.test_allocations import TwoShops, shops

__all__ = ["shops"]

RACES = int(os.environ.get("MPESA_GATEWAY_TEST_RACES", "40"))
"""Transactions that two people allocate at once; 1,000 are tried by hand."""


async def unallocated(shops: TwoShops, receipt: str = "TKM0000001", **values: Any) -> str:
    """Record KES 500 that name nothing, and return the id."""
    (one,) = await shops.receive(shops.report(receipt, **values))
    assert one.subject is None
    return one.transaction_id


async def allocate(shops: TwoShops, transaction_id: str, **body: Any) -> Any:
    return await shops.api.call("POST", f"/v1/transactions/{transaction_id}/allocate", body)


async def payment_of(shops: TwoShops, key: str = "a", amount: int = 500) -> str:
    """Create a payment whose payer does not answer the prompt."""
    payment_id: str = (await shops.api.pay("254700000020", amount, key=key)).data["id"]
    return payment_id


async def test_allocate_to_a_payment_completes_it_and_tells_the_merchant(shops: TwoShops) -> None:
    payment_id = await payment_of(shops)
    transaction_id = await unallocated(shops, payer="254700000020")
    shown = (await allocate(shops, transaction_id, payment_id=payment_id, note="paid at the till")).data
    assert shown["allocated_to"] == {"type": "payment", "id": payment_id}
    (allocation,) = shown["allocations"]
    assert (allocation["note"], allocation["by"].startswith("key:")) == ("paid at the till", True)
    paid = (await shops.api.call("GET", f"/v1/payments/{payment_id}")).data
    assert (paid["status"], paid["receipt"]) == ("completed", "TKM0000001")
    allocated, completed = await shops.events("transaction.allocated", "payment.completed")
    assert {allocated["kind"], completed["kind"]} == {"transaction.allocated", "payment.completed"}
    # The same decision again is no conflict, another one is.
    again = await allocate(shops, transaction_id, payment_id=payment_id, note="paid at the till")
    assert (again.status, again.data) == (200, shown)
    other = await allocate(shops, transaction_id, note="something else")
    assert (other.status, other.body["errors"][0]["code"]) == (409, "CONFLICT")
    assert payment_id in other.body["errors"][0]["message"]
    assert allocation["by"] in other.body["errors"][0]["message"]
    assert len(await shops.rows("allocation")) == 1
    assert await broken_invariants(shops.gateway) == {}


async def test_mark_as_dealt_with_needs_a_note_and_masks_numbers(shops: TwoShops) -> None:
    transaction_id = await unallocated(shops)
    for body in ({}, {"note": "x"}, {"note": "x" * 501}, {"payment_id": "nonsense"}):
        answer = await allocate(shops, transaction_id, **body)
        assert (answer.status, answer.body["errors"][0]["field"]) == (
            422,
            "payment_id" if "payment_id" in body else "note",
        )
    shown = (await allocate(shops, transaction_id, note="given back to 254711000001 in cash")).data
    assert shown["allocated_to"] == {"type": "resolved", "id": transaction_id}
    assert "254711000001" not in shown["allocations"][0]["note"]
    audited = await shops.rows("audit_entry")
    assert [row["action"] for row in audited].count("transaction.allocated") == 1


@pytest.mark.parametrize(
    ("money", "why"),
    [
        ({"amount_cents": 40_000}, "does not fit"),
        ({"payer": "254711999999"}, "does not fit"),
        ({"account_number": "ANOTHER"}, "does not fit"),
    ],
)
async def test_allocate_money_that_contradicts_the_payment_is_409_and_changes_nothing(
    shops: TwoShops, money: dict[str, Any], why: str
) -> None:
    payment_id = await payment_of(shops)
    transaction_id = await unallocated(shops, **money)
    answer = await allocate(shops, transaction_id, payment_id=payment_id)
    assert (answer.status, why in answer.body["errors"][0]["message"]) == (409, True)
    assert (await shops.api.call("GET", f"/v1/payments/{payment_id}")).data["status"] == "pending"
    assert await shops.rows("allocation") == []


async def test_allocate_money_that_fits_another_payment_is_409(shops: TwoShops) -> None:
    chosen = await payment_of(shops, "a")
    transaction_id = await unallocated(shops, source="pull", payer=None, account_number="LATER")
    other = (await shops.api.pay("254700000020", 500, key="b", reference="ANOTHER")).data
    await shops.gateway.db.execute("UPDATE payment SET reference = 'LATER' WHERE payment_id = $1", other["id"])
    answer = await allocate(shops, transaction_id, payment_id=chosen)
    assert answer.status == 409
    # Marking it as dealt with allocates it to the payment that its reference names.
    named = (await shops.api.pay("254700000020", 500, key="c")).data
    second = await unallocated(shops, "TKM0000002", amount_cents=50_000)
    await shops.gateway.db.execute(
        "UPDATE transaction SET account_number = $1 WHERE transaction_id = $2", named["reference"], second
    )
    refused = await allocate(shops, second, note="not needed")
    assert (refused.status, named["id"] in refused.body["errors"][0]["message"]) == (409, True)
    assert (await shops.api.call("GET", f"/v1/payments/{named['id']}")).data["status"] == "completed"


async def test_allocate_to_another_merchants_payment_or_money_out_is_refused(shops: TwoShops) -> None:
    foreign = (await shops.other.pay("254700000020", 500, key="x")).data["id"]
    transaction_id = await unallocated(shops)
    assert (await allocate(shops, transaction_id, payment_id=foreign)).status == 404
    (out,) = await shops.receive(shops.report("TKM0000009", direction="out"))
    assert (await allocate(shops, out.transaction_id, note="sent")).status == 409


async def test_two_people_at_once_exactly_one_wins(shops: TwoShops) -> None:
    service = shops.gateway.port(TransactionService)
    payments = [await payment_of(shops, f"p{number}", 700) for number in range(8)]
    wins = 0
    for number in range(RACES):
        is_paid = number < len(payments)
        money = {"amount_cents": 70_000, "payer": "254700000020"} if is_paid else {}
        transaction_id = await unallocated(shops, f"RACE{number:06}", **money)
        first = Allocate(payment_id=payments[number]) if is_paid else Allocate(note="order one")
        answers = await asyncio.gather(
            service.allocate(shops.merchant_id, "sandbox", transaction_id, first, actor="person:a"),
            service.allocate(
                shops.merchant_id, "sandbox", transaction_id, Allocate(note="order two"), actor="person:b"
            ),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, Conflict)]
        wins += answers.count(None)
        assert (answers.count(None), len(refused)) == (1, 1), answers
        winner = "person:a" if answers[0] is None else "person:b"
        assert winner in refused[0].message
    rows = await shops.rows("allocation")
    assert (wins, len(rows)) == (RACES, RACES)
    assert await broken_invariants(shops.gateway) == {}


async def test_decision_beside_another_report_of_the_money_is_not_refused_as_an_outage(
    shops: TwoShops, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction_id = await unallocated(shops)

    async def lose(_: Any, seen: Any) -> list[None]:
        return [None for _ in seen]

    # The rules lose a race: the row's lock shows the decision, and here there is none.
    monkeypatch.setattr(TransactionRecorder, "record", lose)
    answer = await allocate(shops, transaction_id, note="order 12")
    assert (answer.status, answer.data["allocated_to"]["type"]) == (200, "resolved")
    assert (await allocate(shops, transaction_id, note="order 13")).status == 409
