"""Protects statement lines of reversals that were made outside this gateway."""

from typing import Any

import pytest

from mpesa_gateway_payments import tables
from mpesa_gateway_payments.invariants import INVARIANTS as PAYMENTS
from mpesa_gateway_reconciliation.invariants import INVARIANTS as LINES
from mpesa_gateway_refunds.invariants import INVARIANTS as REFUNDS
from tests.conftest import Harness
from tests.daraja import Daraja, result
from tests.plugins.reconciliation.test_reconciliation import call_back, create_payment, get_payment, row, rows_of, run

RECEIPT, BACK = "TKN4A1B2C3", "TKN9REV001"
REVERSAL = {"transactiontype": "Pay Bill Reversal"}

pytestmark = pytest.mark.usefixtures("initiated")


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only, and pages are requested again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "refunds": {"query_after": [3600]},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


async def event_kinds(harness: Harness) -> list[str]:
    """The types of all events, in order."""
    return [one["kind"] for one in await harness.gateway.db.fetch("SELECT kind FROM event ORDER BY event_id")]


async def assert_invariants(harness: Harness) -> None:
    """Assert that every invariant holds."""
    for one in (*PAYMENTS, *LINES, *REFUNDS):
        if one.grace is None:
            assert await harness.gateway.db.fetch(one.sql) == [], one.name


@pytest.mark.parametrize(
    "line",
    [
        row(BACK, reference=RECEIPT, **REVERSAL),
        row(BACK, reference=f"Reversal of {RECEIPT.lower()}.", **REVERSAL),
        row(BACK, "-500.00", phone=None, transactiontype=f"Org Reversal of {RECEIPT}"),
        row(BACK, "500.00", phone=None, reference=RECEIPT, transactiontype="c2b-pay-bill-reversal"),
        row(RECEIPT, transactiontype="TransactionReversal"),
    ],
)
@pytest.mark.parametrize("is_lost", [False, True])
async def test_reversal_line_with_the_receipt_of_a_payment_reverses_it(
    harness: Harness, daraja: Daraja, line: Any, is_lost: bool
) -> None:
    payment = await create_payment(harness)
    lines = [line]
    if is_lost and line["transactionId"] != RECEIPT:
        # The statement shows the reversal before the payment.
        lines.append(row(RECEIPT, reference=payment["reference"]))
    else:
        await call_back(harness, payment, receipt=RECEIPT)
    found = await run(harness, daraja, *lines)
    assert (found["not_found"], found["ambiguous"], found["mismatched"]) == (0, 0, 0)
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"], after["refunded_amount"]) == ("reversed", RECEIPT, "500.00")
    assert await event_kinds(harness) == ["payment.completed", "payment.reversed"]
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    assert (await rows_of(harness, found))[line["transactionId"]]["payment_id"] == payment["id"]
    # The same lines again add nothing.
    await run(harness, daraja, *lines)
    assert len(await event_kinds(harness)) == 2
    await assert_invariants(harness)


@pytest.mark.parametrize("amount", [200, "200.00", "-200", "501", "499.99"])
async def test_reversal_line_of_another_amount_reverses_a_part(harness: Harness, daraja: Daraja, amount: Any) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, receipt=RECEIPT)
    await run(harness, daraja, row(BACK, amount, reference=RECEIPT, **REVERSAL))
    assert (await get_payment(harness, payment))["status"] == "completed"
    assert await event_kinds(harness) == ["payment.completed", "payment.reversed"]
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 1
    refused = await harness.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})
    assert refused.status == 409
    await assert_invariants(harness)


@pytest.mark.parametrize(
    "line",
    [
        # A line without a receipt, with payer and amount only.
        row(BACK, **REVERSAL),
        row(BACK, reference="TKN4A1B2C", **REVERSAL),
        row(BACK, reference=f"X{RECEIPT}", **REVERSAL),
        # Other money with the receipt: a payout, a charge, a payment with it as account number, no kind.
        row(BACK, reference=RECEIPT, transactiontype="Business Payment to Customer via API"),
        row(BACK, reference=RECEIPT, transactiontype="Pay Bill Charge"),
        row(BACK, reference=RECEIPT),
        row(BACK, reference=RECEIPT, transactiontype=None),
    ],
)
async def test_line_without_a_receipt_or_of_another_kind_reverses_nothing(
    harness: Harness, daraja: Daraja, line: Any
) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, receipt=RECEIPT)
    found = await run(harness, daraja, line)
    assert (await get_payment(harness, payment))["status"] == "completed"
    assert await event_kinds(harness) == ["payment.completed"]
    assert found["not_found"] == 1


@pytest.mark.parametrize("is_done", [False, True])
async def test_reversal_line_of_our_own_refund_is_left_to_the_refund(
    harness: Harness, daraja: Daraja, is_done: bool
) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, receipt=RECEIPT)
    await harness.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})
    (question,) = daraja.requests_of("reversal")
    done = result(0, transaction_id=BACK, says={"OriginalTransactionID": RECEIPT})
    url = question["ResultURL"].removeprefix(harness.base)
    if is_done:
        assert (await harness.api.call("POST", url, done)).status == 200
    line = row(BACK, reference=RECEIPT, **REVERSAL)
    found = await run(harness, daraja, line)
    if not is_done:
        assert (await get_payment(harness, payment))["status"] == "completed"
        assert (await harness.api.call("POST", url, done)).status == 200
        found = await run(harness, daraja, line)
    assert (await get_payment(harness, payment))["status"] == "reversed"
    assert await event_kinds(harness) == ["payment.completed", "payment.reversed"]
    assert found["already_known"] == 1
    assert await harness.gateway.db.fetchval(tables.COUNT_NEEDING_REVIEW, ["sandbox"]) == 0
    await assert_invariants(harness)
