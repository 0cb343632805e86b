"""Each receipt is one transaction, whichever report of it is the first; later ones are witnesses."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway_transactions.api import RecordedTransaction, ReportedTransaction, Subject, Transactions
from mpesa_gateway_transactions.invariants import INVARIANTS
from tests.conftest import Town
from tests.identifiers import identifier, literal
from tests.ledger import each_is_noticed, lay_bare

NUMBER = "174379"
PAID, OTHER, THIRD = (identifier("pay", number) for number in (1, 2, 999))
REFUND, ANOTHER = (identifier("rfd", number) for number in (1, 3))


@pytest.fixture
async def seen(town: Town) -> ReportedTransaction:
    """An STK callback's report of KES 500."""
    # A payer who does not answer: the simulator moves no money.
    merchant = (await town.api.pay("254700000020", key="shop")).data["merchant_id"]
    return ReportedTransaction(
        source="stk",
        env="sandbox",
        number=NUMBER,
        merchant_id=merchant,
        direction="in",
        receipt="TKN0000001",
        occurred_at=town.gateway.clock.now(),
        amount_cents=50_000,
        payer="254711000001",
    )


def paying(seen: ReportedTransaction, payment_id: str) -> ReportedTransaction:
    """The report of money that a payment has."""
    return replace(seen, subject=Subject("payment", payment_id))


async def record(gateway: Gateway, *seen: ReportedTransaction) -> Sequence[RecordedTransaction | None]:
    """Record reports in a transaction of their own."""
    async with gateway.db.transaction():
        return await gateway.port(Transactions).record(seen)


async def defer(gateway: Gateway, *seen: ReportedTransaction) -> None:
    """Record reports as callbacks do: they leave with the transaction."""
    async with gateway.db.transaction():
        await gateway.port(Transactions).defer(seen)


async def stored(gateway: Gateway) -> list[dict[str, Any]]:
    """The transactions, by receipt."""
    return [dict(row) for row in await gateway.db.fetch("SELECT * FROM transaction ORDER BY receipt, direction")]


async def witnesses(gateway: Gateway) -> list[tuple[str, str | None]]:
    """Source and detail of each later report."""
    rows = await gateway.db.fetch("SELECT source, detail FROM transaction_witness ORDER BY transaction_id, source")
    return [(row["source"], row["detail"]) for row in rows]


async def test_the_first_report_makes_the_transaction_and_a_second_fills_in_what_is_absent(
    town: Town, seen: ReportedTransaction
) -> None:
    later = replace(
        seen,
        source="pull",
        occurred_at=seen.occurred_at + timedelta(hours=3),
        payer="2547*****001",
        account_number="order 7",
        kind="Pay Bill Online",
    )
    (first,) = await record(town.gateway, paying(seen, PAID))
    (second,) = await record(town.gateway, later)
    assert first is not None
    assert second == replace(first, is_new=False)
    assert (first.is_new, first.subject) == (True, Subject("payment", PAID))
    (row,) = await stored(town.gateway)
    assert (row["payer"], row["account_number"], row["kind"]) == ("254711000001", "order 7", "Pay Bill Online")
    assert (row["occurred_at"], row["first_source"], row["amount_cents"]) == (seen.occurred_at, "stk", 50_000)
    assert await witnesses(town.gateway) == [("pull", None)]
    # Read again and again, it is one witness.
    await record(town.gateway, later)
    await defer(town.gateway, later)
    assert await witnesses(town.gateway) == [("pull", None)]


@pytest.mark.parametrize("how", [record, defer])
async def test_money_that_was_seen_unallocated_gets_its_subject(
    town: Town, seen: ReportedTransaction, how: Any
) -> None:
    await record(town.gateway, replace(seen, source="pull"))
    await how(town.gateway, paying(seen, PAID))
    (row,) = await stored(town.gateway)
    assert (row["subject_kind"], row["subject_id"], row["first_source"]) == (
        "payment",
        PAID,
        "pull",
    )
    assert await witnesses(town.gateway) == [("stk", None)]


@pytest.mark.parametrize(
    "other",
    [
        {"subject": Subject("payment", OTHER)},
        {"subject": Subject("payment", OTHER), "amount_cents": 100},
        {"subject": Subject("refund", REFUND)},
    ],
)
async def test_money_with_a_subject_is_refused_to_another(
    town: Town, seen: ReportedTransaction, other: dict[str, Any]
) -> None:
    await record(town.gateway, paying(seen, PAID))
    assert await record(town.gateway, replace(seen, **other)) == [None]
    with pytest.raises(ConcurrentUpdate):
        await defer(town.gateway, replace(seen, receipt="TKN0000002"), replace(seen, **other))
    (row,) = await stored(town.gateway)
    assert (row["subject_id"], row["amount_cents"]) == (PAID, 50_000)


async def test_another_amount_is_noted_and_never_written_over(town: Town, seen: ReportedTransaction) -> None:
    await record(town.gateway, paying(seen, PAID))
    await record(town.gateway, replace(seen, source="pull"))
    await record(town.gateway, replace(seen, source="pull", amount_cents=700))
    await defer(town.gateway, replace(seen, amount_cents=900))
    (row,) = await stored(town.gateway)
    assert row["amount_cents"] == 50_000
    assert await witnesses(town.gateway) == [
        ("pull", "reports 700 cents, not 50000"),
        ("stk", "reports 900 cents, not 50000"),
    ]


async def test_unallocated_money_of_another_amount_or_receiver_pays_for_nothing(
    town: Town, seen: ReportedTransaction
) -> None:
    await town.gateway.db.execute(
        "INSERT INTO receiver (receiver_id, env, number, kind, created_at) "
        "VALUES ($1, 'sandbox', '600000', 'paybill', now())",
        identifier("rcv"),
    )
    other = replace(seen, source="pull", amount_cents=700)
    await record(town.gateway, other, replace(other, receipt="TKN0000002", number="600000", amount_cents=50_000))
    for receipt in ("TKN0000001", "TKN0000002"):
        assert await record(town.gateway, replace(paying(seen, PAID), receipt=receipt)) == [None]
    assert {row["subject_id"] for row in await stored(town.gateway)} == {None}


async def test_the_amount_that_was_asked_for_outweighs_one_that_contradicted_the_payment(
    town: Town, seen: ReportedTransaction
) -> None:
    await record(town.gateway, replace(seen, amount_cents=700, conflict_id=PAID))
    assert await record(town.gateway, replace(paying(seen, OTHER), source="pull")) == [None]
    await defer(town.gateway, replace(paying(seen, PAID), source="pull"))
    (row,) = await stored(town.gateway)
    assert (row["subject_id"], row["conflict_id"], row["amount_cents"]) == (
        PAID,
        PAID,
        50_000,
    )
    assert await witnesses(town.gateway) == [("pull", "reports 50000 cents, not 700")]


async def test_a_transfer_between_two_receivers_has_two_sides(town: Town, seen: ReportedTransaction) -> None:
    out = replace(seen, direction="out", subject=Subject("refund", REFUND))
    await record(town.gateway, paying(seen, PAID), out)
    assert [(row["direction"], row["subject_id"]) for row in await stored(town.gateway)] == [
        ("in", PAID),
        ("out", REFUND),
    ]


async def test_a_payment_has_one_transaction(town: Town, seen: ReportedTransaction) -> None:
    await record(town.gateway, paying(seen, PAID))
    with pytest.raises(asyncpg.UniqueViolationError):
        await record(town.gateway, replace(paying(seen, PAID), receipt="TKN0000002"))


async def test_sixty_four_in_one_batch_are_all_recorded_or_none(town: Town, seen: ReportedTransaction) -> None:
    many = [replace(paying(seen, identifier("pay", number)), receipt=f"TKN{number:07}") for number in range(64, 0, -1)]
    await record(town.gateway, replace(many[-1], subject=Subject("payment", THIRD)))
    with pytest.raises(ConcurrentUpdate):
        await defer(town.gateway, *many)
    assert len(await stored(town.gateway)) == 1
    await defer(town.gateway, *many[:-1])
    assert [row["subject_id"] for row in await stored(town.gateway)] == [
        THIRD,
        *(identifier("pay", number) for number in range(2, 65)),
    ]
    # The same report twice is one; two different ones of a receipt are taken alone.
    await defer(town.gateway, many[0], many[0])
    with pytest.raises(ConcurrentUpdate):
        await defer(town.gateway, many[0], replace(many[0], source="pull"))


async def test_of_two_writers_at_once_one_is_the_first_and_the_other_a_witness(
    town: Town, seen: ReportedTransaction
) -> None:
    for number in range(20):
        one = replace(seen, receipt=f"RACE{number:06}")
        await asyncio.gather(
            record(town.gateway, replace(one, source="pull", account_number="order")),
            defer(town.gateway, paying(one, identifier("pay", number))),
        )
    rows = await stored(town.gateway)
    assert len(rows) == 20
    assert {row["account_number"] for row in rows} == {"order"}
    assert {row["subject_id"] for row in rows} == {identifier("pay", number) for number in range(20)}
    assert len(await witnesses(town.gateway)) == 20


async def test_of_two_subjects_at_once_one_gets_the_money(town: Town, seen: ReportedTransaction) -> None:
    for number in range(20):
        one = replace(seen, receipt=f"RACE{number:06}")
        found = await asyncio.gather(
            *(record(town.gateway, paying(one, identifier("pay", side + number))) for side in (100, 200)),
        )
        assert sorted(len([one for one in each if one is not None]) for each in found) == [0, 1]


async def test_batches_in_opposite_orders_do_not_deadlock(town: Town, seen: ReportedTransaction) -> None:
    for _ in range(10):
        many = [replace(seen, receipt=f"LOCK{number:06}") for number in range(40)]
        await asyncio.gather(*(defer(town.gateway, *order) for order in (many, many[::-1], many[20:], many[:20])))


async def test_a_receiver_that_is_unknown_is_refused(town: Town, seen: ReportedTransaction) -> None:
    with pytest.raises(asyncpg.NotNullViolationError):
        await record(town.gateway, replace(seen, number="999999"))


@pytest.mark.as_owner
@pytest.mark.parametrize(
    "change",
    [
        "amount_cents = 1",
        f"subject_id = {literal('pay', 2)}",
        "subject_id = NULL, subject_kind = NULL",
        "receipt = 'TKN0000009'",
        "direction = 'out'",
        "occurred_at = now()",
    ],
)
async def test_what_was_recorded_stays(town: Town, seen: ReportedTransaction, change: str) -> None:
    await record(town.gateway, paying(seen, PAID))
    with pytest.raises(asyncpg.RestrictViolationError):
        await town.gateway.db.execute(f"UPDATE transaction SET {change}")  # noqa: S608 - the cases above
    with pytest.raises(asyncpg.RestrictViolationError):
        await town.gateway.db.execute("DELETE FROM transaction")


BENDINGS = {
    "transactions.receipt_is_once": """
        UPDATE transaction SET receipt = 'TKN0000001' WHERE receipt = 'TKN0000002' RETURNING receipt
    """,
    "transactions.subject_is_once": f"""
        UPDATE transaction SET subject_id = {literal("rfd", 3)}, subject_kind = 'refund'
        WHERE receipt = 'TKN0000004' RETURNING subject_id
    """,  # noqa: S608 - ids that the test chose
    "transactions.env_is_its_receivers": """
        UPDATE transaction SET env = 'live' WHERE receipt = 'TKN0000005' RETURNING transaction_id
    """,
}


async def test_whatever_is_bent_shows(town: Town, seen: ReportedTransaction) -> None:
    assert set(BENDINGS) == {f"transactions.{invariant.name}" for invariant in INVARIANTS}
    many = [replace(seen, receipt=f"TKN{number:07}", direction="out") for number in range(1, 6)]
    many[2] = replace(many[2], subject=Subject("refund", ANOTHER))
    await record(town.gateway, *many)
    await lay_bare(town.gateway)
    assert await each_is_noticed(town.gateway, BENDINGS) == {}
