"""Protects the announcement of incoming money: once, to the owner, and never for money that a push explains."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from mpesa_gateway.clock import rfc3339
from mpesa_gateway_transactions.announcing import AnnouncementSweep
from mpesa_gateway_transactions.api import Subject
from tests.identifiers import identifier
from tests.plugins.transactions.test_allocations import NUMBER, TwoShops, shops

__all__ = ["shops"]

PAY_BILL = "c2b-pay-bill-debit"
RECEIVED = "transaction.received"


async def make_due(shops: TwoShops) -> None:
    """The time of all held money comes."""
    await shops.gateway.db.execute(
        "UPDATE transaction SET announce_at = $1 WHERE announce_at > $1", shops.gateway.clock.now()
    )


async def sweep(shops: TwoShops) -> int:
    return await shops.gateway.port(AnnouncementSweep).run()


async def test_stranger_money_is_announced_at_once_and_once(shops: TwoShops) -> None:
    report = shops.report("TKN0000001", account_number="order 9", payer_name="JOHN")
    found = await asyncio.gather(*(shops.receive(report) for _ in range(5)))
    (event,) = await shops.events(RECEIVED)
    assert event["to"] == shops.merchant_id
    assert event["data"] == {
        "env": "sandbox",
        "transaction_id": found[0][0].transaction_id,
        "merchant_id": shops.merchant_id,
        "shortcode": NUMBER,
        "kind": "c2b",
        "amount": "500.00",
        "currency": "KES",
        "receipt": "TKN0000001",
        "account_number": "order 9",
        "payer": {"phone": "2547*****020", "name": "JOHN"},
        "paid_at": rfc3339(report.occurred_at),
    }
    await make_due(shops)
    assert (await sweep(shops), len(await shops.events(RECEIVED))) == (0, 1)


async def test_money_of_a_recent_push_is_held_and_its_payment_is_not_received_before(shops: TwoShops) -> None:
    payment = (await shops.api.pay("254700000020", 500, key="a")).data
    await shops.receive(shops.report("TKN0000001"), shops.report("TKN0000002", amount_cents=60_000))
    # No push has the other amount.
    assert [event["data"]["receipt"] for event in await shops.events(RECEIVED)] == ["TKN0000002"]
    assert await sweep(shops) == 0
    answer = await shops.receive(shops.report("TKN0000001", account_number=payment["reference"]))
    assert answer[0].subject == Subject("payment", payment["id"])
    await make_due(shops)
    await sweep(shops)
    (completed,) = await shops.events("payment.completed")
    assert completed["data"]["previously_received"] is False
    assert len(await shops.events(RECEIVED)) == 1


async def test_held_money_that_stays_unallocated_is_announced_when_its_time_comes(shops: TwoShops) -> None:
    await shops.api.pay("254700000020", 500, key="a")
    await shops.receive(shops.report("TKN0000001"))
    # A statement's line is held until its page is matched.
    await shops.record(shops.report("TKN0000002", source="pull", kind=PAY_BILL, amount_cents=900))
    assert await shops.events(RECEIVED) == []
    await make_due(shops)
    assert await sweep(shops) == 2
    assert {event["data"]["receipt"] for event in await shops.events(RECEIVED)} == {"TKN0000001", "TKN0000002"}
    assert await sweep(shops) == 0


async def test_sweep_offers_lines_of_statements_to_the_rules(shops: TwoShops) -> None:
    await shops.record(shops.report("TKN0000001", source="pull", kind=PAY_BILL, account_number="RENT"))
    await make_due(shops)
    assert await sweep(shops) == 1
    assert await shops.events(RECEIVED) == []
    (row,) = await shops.rows("transaction")
    assert (row["subject_kind"], row["announce_at"]) == ("rent", None)


async def test_sweep_continues_after_a_transaction_that_fails(shops: TwoShops) -> None:
    for number in range(3):
        await shops.record(
            shops.report(
                f"TKN000000{number}",
                source="pull",
                kind="c2b-pay-bill-debit",
                account_number="BROKEN" if number == 1 else None,
            )
        )
    await make_due(shops)
    assert await sweep(shops) == 2
    assert len(await shops.events(RECEIVED)) == 2


async def test_payment_completed_by_announced_money_says_so(shops: TwoShops) -> None:
    await shops.receive(shops.report("TKN0000001", payer="254700000020"))
    assert len(await shops.events(RECEIVED)) == 1
    payment = (await shops.api.pay("254700000020", 500, key="a")).data
    await shops.gateway.db.execute(
        "UPDATE payment SET created_at = created_at - interval '1 minute' WHERE payment_id = $1", payment["id"]
    )
    path = f"/v1/transactions/{(await shops.rows('transaction'))[0]['transaction_id']}/allocate"
    assert (await shops.api.call("POST", path, {"payment_id": payment["id"]})).status == 200
    (completed,) = await shops.events("payment.completed")
    assert completed["data"]["previously_received"] is True


async def test_writer_that_does_not_know_of_the_announcement_is_refused(shops: TwoShops) -> None:
    report = shops.report("TKN0000001")
    await shops.receive(report)
    late = replace(report, source="stk", subject=Subject("payment", identifier("pay", 1)))
    assert await shops.record(late) == [None]
    (one,) = await shops.record(replace(late, is_announced=True))
    assert one is not None
    assert one.subject == late.subject


async def test_money_out_or_in_conflict_is_not_announced(shops: TwoShops) -> None:
    await shops.receive(
        shops.report("TKN0000001", direction="out"), shops.report("TKN0000002", conflict_id=identifier("pay", 1))
    )
    await shops.gateway.db.execute(
        "UPDATE transaction SET announce_at = now() - $1::interval WHERE direction = 'out'", timedelta(seconds=1)
    )
    await sweep(shops)
    assert await shops.events(RECEIVED) == []
