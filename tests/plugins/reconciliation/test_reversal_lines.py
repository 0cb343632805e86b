"""Lines of a statement by which money that paid for a payment went back outside this gateway."""

from typing import Any

import pytest

from mpesa_gateway_payments import tables
from mpesa_gateway_payments.invariants import INVARIANTS as PAYMENTS
from mpesa_gateway_reconciliation.invariants import INVARIANTS as LINES
from mpesa_gateway_refunds.invariants import INVARIANTS as REFUNDS
from tests.conftest import Town
from tests.daraja import Daraja, result
from tests.plugins.reconciliation.test_reconciliation import asked, call_back, look, row, rows_of, run

RECEIPT, BACK = "TKN4A1B2C3", "TKN9REV001"
REVERSAL = {"transactiontype": "Pay Bill Reversal"}

pytestmark = pytest.mark.usefixtures("initiated")


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """No payment is asked about, and a page is asked for again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "refunds": {"query_after": [3600]},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


async def kinds(town: Town) -> list[str]:
    """The events so far."""
    return [one["kind"] for one in await town.gateway.db.fetch("SELECT kind FROM event ORDER BY event_id")]


async def holds(town: Town) -> None:
    """Every invariant holds."""
    for one in (*PAYMENTS, *LINES, *REFUNDS):
        if one.grace is None:
            assert await town.gateway.db.fetch(one.sql) == [], one.name


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
async def test_reversal_that_names_the_receipt_of_a_payment_is_told_and_waits_for_a_person(
    town: Town, daraja: Daraja, line: Any, is_lost: bool
) -> None:
    payment = await asked(town)
    lines = [line]
    if is_lost and line["transactionId"] != RECEIPT:
        # The statement shows what went back before what came in.
        lines.append(row(RECEIPT, reference=payment["reference"]))
    else:
        await call_back(town, payment, receipt=RECEIPT)
    found = await run(town, daraja, *lines)
    assert (found["not_found"], found["ambiguous"], found["mismatched"]) == (0, 0, 0)
    after = await look(town, payment)
    assert (after["status"], after["receipt"], after["refunded_amount"]) == ("reversed", RECEIPT, "500.00")
    assert await kinds(town) == ["payment.completed", "payment.reversed"]
    assert await town.gateway.db.fetchval(tables.COUNT_HELD, ["sandbox"]) == 1
    assert (await rows_of(town, found))[line["transactionId"]]["payment_id"] == payment["id"]
    # Once, however often it is read.
    await run(town, daraja, *lines)
    assert len(await kinds(town)) == 2
    await holds(town)


@pytest.mark.parametrize("amount", [200, "200.00", "-200", "501", "499.99"])
async def test_reversal_of_another_amount_is_one_of_a_part(town: Town, daraja: Daraja, amount: Any) -> None:
    payment = await asked(town)
    await call_back(town, payment, receipt=RECEIPT)
    await run(town, daraja, row(BACK, amount, reference=RECEIPT, **REVERSAL))
    assert (await look(town, payment))["status"] == "completed"
    assert await kinds(town) == ["payment.completed", "payment.reversed"]
    assert await town.gateway.db.fetchval(tables.COUNT_HELD, ["sandbox"]) == 1
    refused = await town.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})
    assert refused.status == 409
    await holds(town)


@pytest.mark.parametrize(
    "line",
    [
        # It names no receipt, only who and how much.
        row(BACK, **REVERSAL),
        row(BACK, reference="TKN4A1B2C", **REVERSAL),
        row(BACK, reference=f"X{RECEIPT}", **REVERSAL),
        # Other money that names the receipt: a payout, a charge, a payment with it as its account number, no kind.
        row(BACK, reference=RECEIPT, transactiontype="Business Payment to Customer via API"),
        row(BACK, reference=RECEIPT, transactiontype="Pay Bill Charge"),
        row(BACK, reference=RECEIPT),
        row(BACK, reference=RECEIPT, transactiontype=None),
    ],
)
async def test_line_that_names_no_payment_or_is_no_reversal_reverses_nothing(
    town: Town, daraja: Daraja, line: Any
) -> None:
    payment = await asked(town)
    await call_back(town, payment, receipt=RECEIPT)
    found = await run(town, daraja, line)
    assert (await look(town, payment))["status"] == "completed"
    assert await kinds(town) == ["payment.completed"]
    assert found["not_found"] == 1


@pytest.mark.parametrize("is_done", [False, True])
async def test_reversal_of_a_refund_of_our_own_is_left_to_the_refund(town: Town, daraja: Daraja, is_done: bool) -> None:
    payment = await asked(town)
    await call_back(town, payment, receipt=RECEIPT)
    await town.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})
    (question,) = daraja.of("reversal")
    done = result(0, transaction_id=BACK, says={"OriginalTransactionID": RECEIPT})
    url = question["ResultURL"].removeprefix(town.base)
    if is_done:
        assert (await town.api.call("POST", url, done)).status == 200
    line = row(BACK, reference=RECEIPT, **REVERSAL)
    found = await run(town, daraja, line)
    if not is_done:
        assert (await look(town, payment))["status"] == "completed"
        assert (await town.api.call("POST", url, done)).status == 200
        found = await run(town, daraja, line)
    assert (await look(town, payment))["status"] == "reversed"
    assert await kinds(town) == ["payment.completed", "payment.reversed"]
    assert found["already_known"] == 1
    assert await town.gateway.db.fetchval(tables.COUNT_HELD, ["sandbox"]) == 0
    await holds(town)
