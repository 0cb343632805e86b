"""Protects the record of transactions: one row per receipt, and later reports are witnesses."""

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
from tests.conftest import Harness
from tests.identifiers import identifier, literal
from tests.ledger import drop_constraints, find_missed_corruptions

NUMBER = "174379"
PAID, OTHER, THIRD = (identifier("pay", number) for number in (1, 2, 999))
REFUND, ANOTHER = (identifier("rfd", number) for number in (1, 3))


@pytest.fixture
async def report(harness: Harness) -> ReportedTransaction:
    """An STK callback's report of KES 500."""
    # The payer does not answer, so the simulator moves no money.
    merchant = (await harness.api.pay("254700000020", key="shop")).data["merchant_id"]
    return ReportedTransaction(
        source="stk",
        env="sandbox",
        number=NUMBER,
        merchant_id=merchant,
        direction="in",
        receipt="TKN0000001",
        occurred_at=harness.gateway.clock.now(),
        amount_cents=50_000,
        payer="254711000001",
    )


def for_payment(report: ReportedTransaction, payment_id: str) -> ReportedTransaction:
    """The same report with a payment as its subject."""
    return replace(report, subject=Subject("payment", payment_id))


async def record(gateway: Gateway, *reports: ReportedTransaction) -> Sequence[RecordedTransaction | None]:
    """Record reports in a transaction of their own."""
    async with gateway.db.transaction():
        return await gateway.port(Transactions).record(reports)


async def defer(gateway: Gateway, *reports: ReportedTransaction) -> None:
    """Defer reports to the end of their transaction, as callbacks do."""
    async with gateway.db.transaction():
        await gateway.port(Transactions).defer(reports)


async def stored_rows(gateway: Gateway) -> list[dict[str, Any]]:
    """The rows of the transactions, by receipt."""
    return [dict(row) for row in await gateway.db.fetch("SELECT * FROM transaction ORDER BY receipt, direction")]


async def witnesses(gateway: Gateway) -> list[tuple[str, str | None]]:
    """Source and detail of each later report."""
    rows = await gateway.db.fetch("SELECT source, detail FROM transaction_witness ORDER BY transaction_id, source")
    return [(row["source"], row["detail"]) for row in rows]


async def test_record_second_report_is_a_witness_and_fills_missing_fields(
    harness: Harness, report: ReportedTransaction
) -> None:
    later = replace(
        report,
        source="pull",
        occurred_at=report.occurred_at + timedelta(hours=3),
        payer="2547*****001",
        account_number="order 7",
        kind="Pay Bill Online",
    )
    (first,) = await record(harness.gateway, for_payment(report, PAID))
    (second,) = await record(harness.gateway, later)
    assert first is not None
    assert second == replace(first, is_new=False)
    assert (first.is_new, first.subject) == (True, Subject("payment", PAID))
    (row,) = await stored_rows(harness.gateway)
    assert (row["payer"], row["account_number"], row["kind"]) == ("254711000001", "order 7", "Pay Bill Online")
    assert (row["occurred_at"], row["first_source"], row["amount_cents"]) == (report.occurred_at, "stk", 50_000)
    assert await witnesses(harness.gateway) == [("pull", None)]
    # The same report again is the same witness.
    await record(harness.gateway, later)
    await defer(harness.gateway, later)
    assert await witnesses(harness.gateway) == [("pull", None)]


@pytest.mark.parametrize("how", [record, defer])
async def test_record_unallocated_money_with_a_later_subject_is_allocated(
    harness: Harness, report: ReportedTransaction, how: Any
) -> None:
    await record(harness.gateway, replace(report, source="pull"))
    await how(harness.gateway, for_payment(report, PAID))
    (row,) = await stored_rows(harness.gateway)
    assert (row["subject_kind"], row["subject_id"], row["first_source"]) == (
        "payment",
        PAID,
        "pull",
    )
    assert await witnesses(harness.gateway) == [("stk", None)]


@pytest.mark.parametrize(
    "other",
    [
        {"subject": Subject("payment", OTHER)},
        {"subject": Subject("payment", OTHER), "amount_cents": 100},
        {"subject": Subject("refund", REFUND)},
    ],
)
async def test_record_money_of_another_subject_is_refused(
    harness: Harness, report: ReportedTransaction, other: dict[str, Any]
) -> None:
    await record(harness.gateway, for_payment(report, PAID))
    assert await record(harness.gateway, replace(report, **other)) == [None]
    with pytest.raises(ConcurrentUpdate):
        await defer(harness.gateway, replace(report, receipt="TKN0000002"), replace(report, **other))
    (row,) = await stored_rows(harness.gateway)
    assert (row["subject_id"], row["amount_cents"]) == (PAID, 50_000)


async def test_record_another_amount_is_a_witness_and_changes_nothing(
    harness: Harness, report: ReportedTransaction
) -> None:
    await record(harness.gateway, for_payment(report, PAID))
    await record(harness.gateway, replace(report, source="pull"))
    await record(harness.gateway, replace(report, source="pull", amount_cents=700))
    await defer(harness.gateway, replace(report, amount_cents=900))
    (row,) = await stored_rows(harness.gateway)
    assert row["amount_cents"] == 50_000
    assert await witnesses(harness.gateway) == [
        ("pull", "reports 700 cents, not 50000"),
        ("stk", "reports 900 cents, not 50000"),
    ]


async def test_record_unallocated_money_of_another_amount_or_receiver_is_refused(
    harness: Harness, report: ReportedTransaction
) -> None:
    await harness.gateway.db.execute(
        "INSERT INTO receiver (receiver_id, env, number, kind, created_at) "
        "VALUES ($1, 'sandbox', '600000', 'paybill', now())",
        identifier("rcv"),
    )
    other = replace(report, source="pull", amount_cents=700)
    await record(harness.gateway, other, replace(other, receipt="TKN0000002", number="600000", amount_cents=50_000))
    for receipt in ("TKN0000001", "TKN0000002"):
        assert await record(harness.gateway, replace(for_payment(report, PAID), receipt=receipt)) == [None]
    assert {row["subject_id"] for row in await stored_rows(harness.gateway)} == {None}


async def test_record_requested_amount_replaces_a_conflicting_one(
    harness: Harness, report: ReportedTransaction
) -> None:
    await record(harness.gateway, replace(report, amount_cents=700, conflict_id=PAID))
    assert await record(harness.gateway, replace(for_payment(report, OTHER), source="pull")) == [None]
    await defer(harness.gateway, replace(for_payment(report, PAID), source="pull"))
    (row,) = await stored_rows(harness.gateway)
    assert (row["subject_id"], row["conflict_id"], row["amount_cents"]) == (
        PAID,
        PAID,
        50_000,
    )
    assert await witnesses(harness.gateway) == [("pull", "reports 50000 cents, not 700")]


@pytest.mark.parametrize("how", [record, defer])
async def test_record_money_of_another_receiver_is_no_conflict_but_a_witness(
    harness: Harness, report: ReportedTransaction, how: Any
) -> None:
    await harness.gateway.db.execute(
        "INSERT INTO receiver (receiver_id, env, number, kind, created_at) "
        "VALUES ($1, 'sandbox', '600000', 'paybill', now())",
        identifier("rcv"),
    )
    await record(harness.gateway, replace(report, source="pull", number="600000"))
    (before,) = await stored_rows(harness.gateway)
    await how(harness.gateway, replace(report, conflict_id=PAID, payer=None))
    assert await stored_rows(harness.gateway) == [before]
    assert await witnesses(harness.gateway) == [("stk", f"reports receiver {NUMBER}, not 600000")]


async def test_record_transfer_between_receivers_has_two_rows(harness: Harness, report: ReportedTransaction) -> None:
    out = replace(report, direction="out", subject=Subject("refund", REFUND))
    await record(harness.gateway, for_payment(report, PAID), out)
    assert [(row["direction"], row["subject_id"]) for row in await stored_rows(harness.gateway)] == [
        ("in", PAID),
        ("out", REFUND),
    ]


async def test_record_second_receipt_of_a_payment_raises(harness: Harness, report: ReportedTransaction) -> None:
    await record(harness.gateway, for_payment(report, PAID))
    with pytest.raises(asyncpg.UniqueViolationError):
        await record(harness.gateway, replace(for_payment(report, PAID), receipt="TKN0000002"))


async def test_defer_batch_of_64_is_recorded_completely_or_not_at_all(
    harness: Harness, report: ReportedTransaction
) -> None:
    many = [
        replace(for_payment(report, identifier("pay", number)), receipt=f"TKN{number:07}")
        for number in range(64, 0, -1)
    ]
    await record(harness.gateway, replace(many[-1], subject=Subject("payment", THIRD)))
    with pytest.raises(ConcurrentUpdate):
        await defer(harness.gateway, *many)
    assert len(await stored_rows(harness.gateway)) == 1
    await defer(harness.gateway, *many[:-1])
    assert [row["subject_id"] for row in await stored_rows(harness.gateway)] == [
        THIRD,
        *(identifier("pay", number) for number in range(2, 65)),
    ]
    # The same report twice is one row; two different reports of a receipt are handled one at a time.
    await defer(harness.gateway, many[0], many[0])
    with pytest.raises(ConcurrentUpdate):
        await defer(harness.gateway, many[0], replace(many[0], source="pull"))


async def test_record_by_two_writers_at_once_is_one_row_and_one_witness(
    harness: Harness, report: ReportedTransaction
) -> None:
    for number in range(20):
        one = replace(report, receipt=f"RACE{number:06}")
        await asyncio.gather(
            record(harness.gateway, replace(one, source="pull", account_number="order")),
            defer(harness.gateway, for_payment(one, identifier("pay", number))),
        )
    rows = await stored_rows(harness.gateway)
    assert len(rows) == 20
    assert {row["account_number"] for row in rows} == {"order"}
    assert {row["subject_id"] for row in rows} == {identifier("pay", number) for number in range(20)}
    assert len(await witnesses(harness.gateway)) == 20


async def test_record_for_two_subjects_at_once_allocates_to_one(harness: Harness, report: ReportedTransaction) -> None:
    for number in range(20):
        one = replace(report, receipt=f"RACE{number:06}")
        found = await asyncio.gather(
            *(record(harness.gateway, for_payment(one, identifier("pay", side + number))) for side in (100, 200)),
        )
        assert sorted(len([one for one in each if one is not None]) for each in found) == [0, 1]


async def test_defer_batches_in_opposite_orders_do_not_deadlock(harness: Harness, report: ReportedTransaction) -> None:
    for _ in range(10):
        many = [replace(report, receipt=f"LOCK{number:06}") for number in range(40)]
        await asyncio.gather(*(defer(harness.gateway, *order) for order in (many, many[::-1], many[20:], many[:20])))


async def test_record_with_an_unknown_receiver_raises(harness: Harness, report: ReportedTransaction) -> None:
    with pytest.raises(asyncpg.NotNullViolationError):
        await record(harness.gateway, replace(report, number="999999"))


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
async def test_transaction_change_or_deletion_is_refused(
    harness: Harness, report: ReportedTransaction, change: str
) -> None:
    await record(harness.gateway, for_payment(report, PAID))
    with pytest.raises(asyncpg.RestrictViolationError):
        await harness.gateway.db.execute(f"UPDATE transaction SET {change}")  # noqa: S608 - the cases above
    with pytest.raises(asyncpg.RestrictViolationError):
        await harness.gateway.db.execute("DELETE FROM transaction")


VIOLATIONS = {
    "transactions.allocations_rebuild_subjects": f"""
        INSERT INTO allocation (transaction_id, number, subject_kind, subject_id, by, at)
        SELECT transaction_id, 1, 'payment', {literal("pay", 2)}, 'a person', now() FROM transaction
        WHERE receipt = 'TKN0000006' RETURNING transaction_id
    """,  # noqa: S608 - ids that the test chose
    "transactions.allocated_money_came_in": """
        UPDATE transaction SET announced_at = now() WHERE receipt = 'TKN0000004' RETURNING transaction_id
    """,
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


async def test_invariants_report_each_violation(harness: Harness, report: ReportedTransaction) -> None:
    assert set(VIOLATIONS) == {f"transactions.{invariant.name}" for invariant in INVARIANTS}
    many = [replace(report, receipt=f"TKN{number:07}", direction="out") for number in range(1, 6)]
    many.append(replace(report, receipt="TKN0000006"))
    many[2] = replace(many[2], subject=Subject("refund", ANOTHER))
    await record(harness.gateway, *many)
    await drop_constraints(harness.gateway)
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS) == {}
