"""Protects the announcement of incoming money: once, to the owner, and never for money that a push explains."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from mpesa_gateway.clock import rfc3339
from mpesa_gateway_transactions.announcing import AnnouncementSweep
from mpesa_gateway_transactions.api import Subject
from tests.identifiers import identifier
from tests.plugins.transactions.test_allocations import NUMBER, Desk, desk

__all__ = ["desk"]

PAY_BILL = "c2b-pay-bill-debit"
RECEIVED = "transaction.received"


async def make_due(desk: Desk) -> None:
    """The time of all held money comes."""
    await desk.gateway.db.execute(
        "UPDATE transaction SET announce_at = $1 WHERE announce_at > $1", desk.gateway.clock.now()
    )


async def sweep(desk: Desk) -> int:
    return await desk.gateway.port(AnnouncementSweep).run()


async def test_stranger_money_is_announced_at_once_and_once(desk: Desk) -> None:
    report = desk.report("TKN0000001", account_number="order 9", payer_name="JOHN")
    found = await asyncio.gather(*(desk.receive(report) for _ in range(5)))
    (event,) = await desk.events(RECEIVED)
    assert event["to"] == desk.merchant_id
    assert event["data"] == {
        "env": "sandbox",
        "transaction_id": found[0][0].transaction_id,
        "merchant_id": desk.merchant_id,
        "shortcode": NUMBER,
        "kind": "c2b",
        "amount": "500.00",
        "currency": "KES",
        "receipt": "TKN0000001",
        "account_number": "order 9",
        "payer": {"phone": "2547*****020", "name": "JOHN"},
        "paid_at": rfc3339(report.occurred_at),
    }
    await make_due(desk)
    assert (await sweep(desk), len(await desk.events(RECEIVED))) == (0, 1)


async def test_money_of_a_recent_push_is_held_and_its_payment_is_not_received_before(desk: Desk) -> None:
    payment = (await desk.api.pay("254700000020", 500, key="a")).data
    await desk.receive(desk.report("TKN0000001"), desk.report("TKN0000002", amount_cents=60_000))
    # No push has the other amount.
    assert [event["data"]["receipt"] for event in await desk.events(RECEIVED)] == ["TKN0000002"]
    assert await sweep(desk) == 0
    answer = await desk.receive(desk.report("TKN0000001", account_number=payment["reference"]))
    assert answer[0].subject == Subject("payment", payment["id"])
    await make_due(desk)
    await sweep(desk)
    (completed,) = await desk.events("payment.completed")
    assert completed["data"]["previously_received"] is False
    assert len(await desk.events(RECEIVED)) == 1


async def test_held_money_that_stays_unallocated_is_announced_when_its_time_comes(desk: Desk) -> None:
    await desk.api.pay("254700000020", 500, key="a")
    await desk.receive(desk.report("TKN0000001"))
    # A statement's line is held until its page is matched.
    await desk.record(desk.report("TKN0000002", source="pull", kind=PAY_BILL, amount_cents=900))
    assert await desk.events(RECEIVED) == []
    await make_due(desk)
    assert await sweep(desk) == 2
    assert {event["data"]["receipt"] for event in await desk.events(RECEIVED)} == {"TKN0000001", "TKN0000002"}
    assert await sweep(desk) == 0


async def test_sweep_offers_lines_of_statements_to_the_rules(desk: Desk) -> None:
    await desk.record(desk.report("TKN0000001", source="pull", kind=PAY_BILL, account_number="RENT"))
    await make_due(desk)
    assert await sweep(desk) == 1
    assert await desk.events(RECEIVED) == []
    (row,) = await desk.rows("transaction")
    assert (row["subject_kind"], row["announce_at"]) == ("rent", None)


async def test_sweep_continues_after_a_transaction_that_fails(desk: Desk) -> None:
    for number in range(3):
        await desk.record(
            desk.report(
                f"TKN000000{number}",
                source="pull",
                kind="c2b-pay-bill-debit",
                account_number="BROKEN" if number == 1 else None,
            )
        )
    await make_due(desk)
    assert await sweep(desk) == 2
    assert len(await desk.events(RECEIVED)) == 2


async def test_payment_completed_by_announced_money_says_so(desk: Desk) -> None:
    await desk.receive(desk.report("TKN0000001", payer="254700000020"))
    assert len(await desk.events(RECEIVED)) == 1
    payment = (await desk.api.pay("254700000020", 500, key="a")).data
    await desk.gateway.db.execute(
        "UPDATE payment SET created_at = created_at - interval '1 minute' WHERE payment_id = $1", payment["id"]
    )
    path = f"/v1/transactions/{(await desk.rows('transaction'))[0]['transaction_id']}/allocate"
    assert (await desk.api.call("POST", path, {"payment_id": payment["id"]})).status == 200
    (completed,) = await desk.events("payment.completed")
    assert completed["data"]["previously_received"] is True


async def test_writer_that_does_not_know_of_the_announcement_is_refused(desk: Desk) -> None:
    report = desk.report("TKN0000001")
    await desk.receive(report)
    late = replace(report, source="stk", subject=Subject("payment", identifier("pay", 1)))
    assert await desk.record(late) == [None]
    (one,) = await desk.record(replace(late, is_announced=True))
    assert one is not None
    assert one.subject == late.subject


async def test_money_out_or_in_conflict_is_not_announced(desk: Desk) -> None:
    await desk.receive(
        desk.report("TKN0000001", direction="out"), desk.report("TKN0000002", conflict_id=identifier("pay", 1))
    )
    await desk.gateway.db.execute(
        "UPDATE transaction SET announce_at = now() - $1::interval WHERE direction = 'out'", timedelta(seconds=1)
    )
    await sweep(desk)
    assert await desk.events(RECEIVED) == []
