"""Protects money without a payment that M-Pesa sent back outside the gateway: it counts no more, and is told once."""

import asyncio
from typing import Any

import pytest

from mpesa_gateway.db.engine import Row
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_transactions.api import ReportedReversal
from mpesa_gateway_transactions.contradictions import ContradictionReview
from mpesa_gateway_transactions.reversals import Change, decide
from tests.conftest import Harness
from tests.daraja import Daraja, result, stk_callback
from tests.ledger import broken_invariants
from tests.loose_money import receive_loose
from tests.plugins.payments.test_external_reversals import call_back, query_status
from tests.plugins.reconciliation.test_allocated_lines import ACCOUNT, confirm, dealt_with, expect_money, waiting
from tests.plugins.reconciliation.test_reconciliation import (
    create_payment,
    get_payment,
    post_status_result,
    row,
    run,
)

pytestmark = pytest.mark.usefixtures("initiated")

RECEIPT, BACK, BACK_2 = "TKN4A1B2C3", "TKN9REV001", "TKN9REV002"
REVERSAL = {"transactiontype": "Pay Bill Reversal"}
LINE = row(BACK, reference=RECEIPT, **REVERSAL)


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only, and pages are requested again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


async def money(harness: Harness, kind: str) -> str:
    """Receive KES 500 for an account number, marked as dealt with, or unallocated."""
    if kind == "account_number":
        assert (await harness.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 800})).status == 200
        return await confirm(harness, RECEIPT)
    transaction_id = await receive_loose(harness, RECEIPT, account_number="UNKNOWN", payer="2547*****999")
    if kind == "resolved":
        await dealt_with(harness, transaction_id)
    return transaction_id


async def report(harness: Harness, daraja: Daraja, source: str) -> None:
    """Report that the money was reversed in full."""
    if source == "line":
        await run(harness, daraja, LINE)
    else:
        await query_status(harness, "Reversed")


async def stored(harness: Harness, receipt: str = RECEIPT, direction: str = "in") -> Row:
    found = await harness.gateway.db.fetchrow(
        "SELECT * FROM transaction WHERE receipt = $1 AND direction = $2", receipt, direction
    )
    assert found is not None
    return found


async def events(harness: Harness, *kinds: str) -> list[dict[str, Any]]:
    """The data of the events of these kinds, in order."""
    found = (await harness.api.call("GET", "/v1/events?limit=100")).data
    return [one["data"] for one in reversed(found) if one["type"] in kinds]


async def account(harness: Harness) -> tuple[str, str, str]:
    found = (await harness.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    return found["state"], found["received"], found["outstanding"]


async def attention(harness: Harness) -> int:
    return await harness.gateway.port(ContradictionReview).count("sandbox")


@pytest.mark.parametrize("source", ["line", "answer"])
@pytest.mark.parametrize("kind", ["account_number", "resolved", "loose"])
async def test_reversal_outside_marks_the_money_and_tells_each_once(
    harness: Harness, daraja: Daraja, kind: str, source: str
) -> None:
    transaction_id = await money(harness, kind)
    for _ in range(2):
        await report(harness, daraja, source)
    found = await stored(harness)
    assert (found["reversed_outside"], found["refunded_cents"]) == ("whole", 50_000)
    shown = (await harness.api.call("GET", f"/v1/transactions/{transaction_id}")).data
    assert (shown["reversed"], shown["refunded_amount"]) == ("whole", "500.00")
    assert [one["source"] for one in shown["witnesses"]][-1] == "reversal"
    (told,) = await events(harness, "transaction.reversed")
    assert (told["transaction_id"], told["reversed"], told["origin"]) == (transaction_id, "whole", "mpesa")
    assert (told["refund_amount"], told["refunded_amount"]) == ("500.00", "500.00")
    assert told["reversal_receipt"] == (BACK if source == "line" else None)
    assert (told["allocated_to"] or {}).get("type") == {"loose": None}.get(kind, kind)
    assert await attention(harness) == 1
    refused = await harness.api.call("POST", "/v1/refunds", {"transaction_id": transaction_id})
    assert (refused.status, "reversed outside" in refused.error["message"]) == (409, True)
    if source == "line":
        assert (await stored(harness, BACK, "out"))["subject_id"] == transaction_id
        assert await waiting(harness) == 0
    assert await broken_invariants(harness.gateway) == {}


@pytest.mark.parametrize("source", ["line", "answer"])
async def test_reversed_money_no_longer_counts_to_its_account_number(
    harness: Harness, daraja: Daraja, source: str
) -> None:
    await money(harness, "account_number")
    assert await account(harness) == ("part_paid", "500.00", "300.00")
    await confirm(harness, "TKN0000002", 400)
    assert await account(harness) == ("overpaid", "900.00", "0.00")
    await report(harness, daraja, source)
    assert await account(harness) == ("part_paid", "400.00", "400.00")
    told = await events(harness, "account.part_paid", "account.paid", "account.overpaid")
    assert [(one["received"], one["amount"]) for one in told] == [
        ("500.00", "500.00"),
        ("900.00", "400.00"),
        ("400.00", "-500.00"),
    ]


async def test_line_after_the_answer_about_the_same_reversal_adds_nothing(harness: Harness, daraja: Daraja) -> None:
    await money(harness, "account_number")
    for source in ("answer", "line", "answer", "line"):
        await report(harness, daraja, source)
    assert await account(harness) == ("unpaid", "0.00", "800.00")
    assert (len(await events(harness, "transaction.reversed")), await waiting(harness)) == (1, 0)
    # Another reversal of the same money waits for a person.
    await run(harness, daraja, row(BACK_2, reference=RECEIPT, **REVERSAL))
    assert (await waiting(harness), await account(harness)) == (1, ("unpaid", "0.00", "800.00"))


async def test_parts_add_up_to_the_whole(harness: Harness, daraja: Daraja) -> None:
    await money(harness, "account_number")
    lines = [row(BACK, 200, reference=RECEIPT, **REVERSAL), row(BACK_2, 300, reference=RECEIPT, **REVERSAL)]
    await run(harness, daraja, lines[0])
    assert await account(harness) == ("part_paid", "300.00", "500.00")
    await run(harness, daraja, *lines)
    assert await account(harness) == ("unpaid", "0.00", "800.00")
    told = await events(harness, "transaction.reversed")
    assert [(one["reversed"], one["refund_amount"], one["refunded_amount"]) for one in told] == [
        ("part", "200.00", "200.00"),
        ("whole", "300.00", "500.00"),
    ]
    assert await broken_invariants(harness.gateway) == {}


@pytest.mark.parametrize("amount", [501, "0.50", "x"])
async def test_part_of_an_unusable_amount_is_told_and_counts_nothing(
    harness: Harness, daraja: Daraja, amount: Any
) -> None:
    await money(harness, "account_number")
    await run(harness, daraja, row(BACK, amount, reference=RECEIPT, **REVERSAL))
    (told,) = await events(harness, "transaction.reversed")
    assert (told["reversed"], told["refund_amount"], told["refunded_amount"]) == ("part", None, "0.00")
    assert (await account(harness), await attention(harness)) == (("part_paid", "500.00", "300.00"), 1)
    assert await broken_invariants(harness.gateway) == {}


@pytest.mark.parametrize("amount", [500, 200])
async def test_money_reversed_before_its_account_number_exists_is_never_counted(
    harness: Harness, daraja: Daraja, amount: int
) -> None:
    await confirm(harness, RECEIPT)
    await run(harness, daraja, row(BACK, amount, reference=RECEIPT, **REVERSAL))
    await expect_money(harness)
    assert await harness.gateway.port(AccountNumbers).allocate_waiting() == 0
    await confirm(harness, RECEIPT, account=ACCOUNT)
    found = await stored(harness)
    assert (found["subject_id"], found["refunded_cents"]) == (None, amount * 100)
    payment = await create_payment(harness)
    path = f"/v1/transactions/{found['transaction_id']}/allocate"
    assert (await harness.api.call("POST", path, {"payment_id": payment["id"]})).status == 409
    await dealt_with(harness, found["transaction_id"])
    assert await broken_invariants(harness.gateway) == {}


async def test_money_that_arrives_after_the_answer_about_its_reversal_is_reversed(harness: Harness) -> None:
    await expect_money(harness)
    assert await query_status(harness, "Reversed") == "not_ours"
    await confirm(harness, RECEIPT)
    await harness.gateway.port(ExternalReversals).apply_recorded()
    assert (await stored(harness))["reversed_outside"] == "whole"
    assert (await harness.api.call("GET", "/v1/account-numbers/HOUSE%207")).data["received"] == "0.00"
    assert len(await events(harness, "transaction.reversed")) == 1


async def test_reversed_money_that_may_be_a_payments_is_reversed_with_its_payment(
    harness: Harness, daraja: Daraja
) -> None:
    made = (await harness.api.pay("254711000001", 500, key="a")).data
    # Its account number is another: only the callback can name the payment.
    await receive_loose(harness, RECEIPT, account_number=None, payer="2547*****001")
    await run(harness, daraja, LINE)
    assert (await stored(harness))["reversed_outside"] is None
    await call_back(harness, "stk", made["id"], stk_callback(made["provider_ref"], receipt=RECEIPT, amount=500))
    await harness.gateway.port(ExternalReversals).apply_recorded()
    assert (await get_payment(harness, made))["status"] == "reversed"
    assert await events(harness, "transaction.reversed") == []
    assert len(await events(harness, "payment.reversed")) == 1


@pytest.mark.parametrize("amount", ["500.00", "501.00"])
async def test_answer_about_an_ambiguous_line_may_report_its_reversal(
    harness: Harness, daraja: Daraja, amount: str
) -> None:
    made = await create_payment(harness, reference="table 4")
    await run(harness, daraja, row(RECEIPT, reference="table 4", phone=None))
    (question,) = daraja.requests_of("transactionstatus")
    await post_status_result(harness, question, "254711000001", TransactionStatus="Reversed", Amount=amount)
    assert (await get_payment(harness, made))["status"] == "pending"
    # It waits for the payment's receipt, and no line of the money completes the payment.
    recorded = await harness.gateway.db.fetch("SELECT receipt FROM outgoing_receipt")
    assert [one["receipt"] for one in recorded] == ([RECEIPT] if amount == "500.00" else [])
    (_, answer) = await asyncio.gather(
        harness.gateway.port(ExternalReversals).apply_recorded(),
        run(harness, daraja, row(RECEIPT, reference="table 4", phone="254711000001")),
    )
    assert answer["recovered"] == (amount == "501.00")


async def test_reversal_line_of_our_own_refund_changes_nothing(harness: Harness, daraja: Daraja) -> None:
    transaction_id = await money(harness, "account_number")
    assert (await harness.api.call("POST", "/v1/refunds", {"transaction_id": transaction_id})).status == 201
    (question,) = daraja.requests_of("reversal")
    await run(harness, daraja, LINE)
    await query_status(harness, "Reversed")
    assert (await stored(harness))["reversed_outside"] is None
    done = result(0, transaction_id=BACK, says={"OriginalTransactionID": RECEIPT, "Amount": "500.00"})
    assert (await harness.api.call("POST", question["ResultURL"].removeprefix(harness.base), done)).status == 200
    await run(harness, daraja, LINE)
    await query_status(harness, "Reversed")
    assert await account(harness) == ("unpaid", "0.00", "800.00")
    assert (await events(harness, "transaction.reversed"), await attention(harness)) == ([], 0)
    assert await broken_invariants(harness.gateway) == {}


async def test_concurrent_reports_of_one_reversal_count_once(harness: Harness) -> None:
    await money(harness, "account_number")
    await query_status(harness, "Reversed")
    reversals = harness.gateway.port(ExternalReversals)
    seen = ReportedReversal(env="sandbox", number="174379", receipts=(RECEIPT,), is_whole=True)

    async def again() -> None:
        async with harness.gateway.db.transaction():
            await reversals.reverse_loose(seen)

    await asyncio.gather(*(again() for _ in range(8)), reversals.apply_recorded())
    assert await account(harness) == ("unpaid", "0.00", "800.00")
    assert len(await events(harness, "transaction.reversed")) == 1


@pytest.mark.parametrize(
    ("known", "gone", "reserved", "whole", "amount", "change"),
    [
        (None, 0, 0, True, None, Change("whole", 500)),
        (None, 0, 0, False, 500, Change("whole", 500)),
        (None, 0, 0, False, None, Change("part", None)),
        (None, 0, 0, False, 200, Change("part", 200)),
        (None, 0, 0, False, 501, Change("part", None)),
        (None, 0, 0, False, 0, Change("part", None)),
        ("part", 200, 0, False, 300, Change("whole", 300)),
        ("part", 200, 0, False, 301, Change("part", None)),
        ("part", 200, 0, True, None, Change("whole", 300)),
        ("part", 0, 0, False, 200, Change("part", 200)),
        ("part", 0, 0, False, None, None),
        ("whole", 500, 0, True, None, None),
        (None, 500, 0, True, None, None),
        (None, 100, 0, False, 200, None),
        (None, 0, 100, True, None, None),
    ],
)
def test_decide_each_state_adds_what_is_known(
    known: str | None, gone: int, reserved: int, whole: bool, amount: int | None, change: Change | None
) -> None:
    money = {"reversed_outside": known, "amount_cents": 500, "refunded_cents": gone, "refund_reserved_cents": reserved}
    seen = ReportedReversal(env="live", number="1", receipts=(RECEIPT,), is_whole=whole, amount_cents=amount)
    assert decide(money, seen) == change
