"""Protects statement lines of an unknown direction: a rule decides nothing by them, and nobody hears of them."""

from typing import Any

import pytest

from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_transactions.announcing import AnnouncementSweep
from tests.conftest import Harness
from tests.daraja import Daraja, result
from tests.plugins.reconciliation.test_reconciliation import (
    call_back,
    create_payment,
    get_payment,
    post_status_result,
    row,
    run,
)

pytestmark = pytest.mark.usefixtures("initiated")

UNKNOWN = {"transactiontype": "something new"}


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "refunds": {"query_after": [3600, 3600, 3600]},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


async def two_minutes_later(harness: Harness) -> None:
    await harness.gateway.db.execute(
        "UPDATE transaction SET announce_at = $1 WHERE announce_at > $1", harness.gateway.clock.now()
    )
    await harness.gateway.port(AnnouncementSweep).run()


@pytest.mark.parametrize("kind", ["unknown", "absent", "twin"])
async def test_line_of_unknown_direction_completes_no_payment_later(
    harness: Harness, daraja: Daraja, kind: str
) -> None:
    payment = await create_payment(harness)
    line = {
        "unknown": [row("TKA0000001", reference=payment["reference"], **UNKNOWN)],
        "absent": [row("TKA0000001", reference=payment["reference"], transactiontype=None)],
        # One receipt twice: paid and sent back.
        "twin": [
            row("TKA0000001", reference=payment["reference"]),
            row("TKA0000001", reference=payment["reference"], transactiontype="Pay Bill Reversal"),
        ],
    }[kind]
    found = await run(harness, daraja, *line)
    assert (found["ambiguous"], found["recovered"]) == (1, 0)
    assert (await get_payment(harness, payment))["status"] == "pending"
    await two_minutes_later(harness)
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"]) == ("pending", None)


@pytest.mark.parametrize("kind", ["unknown", "twin"])
@pytest.mark.parametrize("job", ["allocate_waiting", "sweep"])
async def test_line_of_unknown_direction_counts_to_no_account_number(
    harness: Harness, daraja: Daraja, kind: str, job: str
) -> None:
    assert (await harness.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 500})).status == 200
    lines = [row("TKA0000001", reference="HOUSE 7", **UNKNOWN)]
    if kind == "twin":
        lines = [
            row("TKA0000001", reference="HOUSE 7"),
            row("TKA0000001", reference="HOUSE 7", transactiontype="Pay Bill Reversal"),
        ]
    await run(harness, daraja, *lines)
    if job == "sweep":
        await two_minutes_later(harness)
    else:
        await harness.gateway.port(AccountNumbers).allocate_waiting()
    found = (await harness.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    assert (found["state"], found["received"]) == ("unpaid", "0.00")


async def test_refund_seen_on_the_statement_before_its_result_completes(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, receipt="TKA0000001", phone=254711000001)
    assert (await get_payment(harness, payment))["status"] == "completed"
    refund = (await harness.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})).data
    await run(harness, daraja, row("TKA0000002", phone=None, transactiontype="Merchant Refund"))
    url = harness.gateway.services.get(Callbacks).url_for(
        "reversal", env="sandbox", merchant_id=payment["merchant_id"], subject_id=refund["id"]
    )
    body = result(0, transaction_id="TKA0000002", says={"OriginalTransactionID": "TKA0000001", "Amount": 500})
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200
    await two_minutes_later(harness)
    told = await harness.gateway.db.fetch("SELECT kind FROM event WHERE kind LIKE 'transaction.%'")
    status = (await harness.api.call("GET", f"/v1/refunds/{refund['id']}")).data["status"]
    assert (status, [one["kind"] for one in told]) == ("completed", [])


async def test_money_that_went_out_by_mpesas_answer_is_not_announced(harness: Harness, daraja: Daraja) -> None:
    await create_payment(harness, reference="table 4")
    found = await run(
        harness, daraja, row("TKA0000001", phone="2547****001", reference="table 4", transactiontype="something new")
    )
    assert found["ambiguous"] == 1
    (question,) = daraja.requests_of("transactionstatus")
    await post_status_result(
        harness, question, "254711000001", CreditPartyName="254733000000 - SOMEBODY ELSE", Amount=500
    )
    is_to_us = await harness.gateway.db.fetchval("SELECT is_to_us FROM statement_note")
    assert is_to_us is False
    await two_minutes_later(harness)
    told = await harness.gateway.db.fetch("SELECT kind FROM event WHERE kind = 'transaction.received'")
    assert [one["kind"] for one in told] == []


async def test_line_whose_receiver_mpesa_confirms_is_announced(harness: Harness, daraja: Daraja) -> None:
    await create_payment(harness, reference="table 4")
    line = row("TKA0000001", phone="2547****001", reference="table 4", transactiontype="something new")
    await run(harness, daraja, line)
    await two_minutes_later(harness)
    (question,) = daraja.requests_of("transactionstatus")
    # Another payer than the payment's.
    await post_status_result(harness, question, "254711999001", CreditPartyName="174379 - SHOP", Amount=500)
    await two_minutes_later(harness)
    told = await harness.gateway.db.fetch("SELECT kind FROM event WHERE kind = 'transaction.received'")
    assert [one["kind"] for one in told] == ["transaction.received"]
