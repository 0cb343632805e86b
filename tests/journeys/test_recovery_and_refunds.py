"""Protects recovery and refunds: lost results are found by queries, delivered once, and no refund is sent twice."""

import asyncio
from typing import Any

import pytest

from mpesa_gateway.testing.serving import Answer, eventually
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from tests.conftest import Harness

SILENT = "254700000007"
"""Pays, and Daraja sends no callback."""

SAYS_ANOTHER_AMOUNT = "254700000011"
"""Pays the requested amount, and the callback reports one shilling more."""

VANISHES = "254700000021"
"""Pays, and neither an acknowledgement nor a callback arrives."""

pytestmark = pytest.mark.usefixtures("initiated")


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Status queries run soon."""
    return values | {"payments": {"query_after": [1], "expire_after": 60}, "simulator": {"callback_delay": 0.05}}


async def habit(harness: Harness, **habits: str) -> None:
    """Make the simulator misbehave."""
    assert (await harness.api.call("PATCH", "/simulator/control/habits", habits)).status == 200


async def paid(harness: Harness, key: str = "a", phone: str = "254711000001", amount: int = 500, **more: Any) -> Any:
    """Return a completed payment."""
    made = (await harness.api.pay(phone, amount, key=key, **more)).data
    return await harness.api.settled(made["id"], "completed")


async def refunded(harness: Harness, refund_id: str, status: str) -> Any:
    """Return a refund once it has this status."""

    async def look() -> Any:
        found = (await harness.api.call("GET", f"/v1/refunds/{refund_id}")).data
        return found if found["status"] == status else None

    return await eventually(look)


async def reconcile(harness: Harness, body: dict[str, Any] | None = None) -> Answer:
    """Run a reconciliation over the last two hours."""
    return await harness.api.call("POST", "/v1/payments/mpesa/reconcile", body or {})


async def test_lost_callback_is_replaced_by_stk_query_and_a_later_receipt(
    harness: Harness,
) -> None:
    payment = await paid(harness, phone=SILENT)
    assert payment["receipt"] is None
    assert payment["timeline"][-1]["cause"] == "stk_query"
    query = (await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")).data
    assert (query["ResponseCode"], query["payment_id"]) == ("0", payment["id"])

    async def look() -> Any:
        return (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data["receipt"]

    receipt = await eventually(look)
    (entry,) = (await harness.api.call("GET", "/simulator/control/ledger")).data
    assert entry["receipt"] == receipt
    check = (await harness.api.call("GET", f"/v1/payments/mpesa/checks/{query['check_id']}")).data
    assert (check["state"], check["finding"]) == ("answered", "already_known")
    assert len(await harness.receiver.wait_for(1)) == 1


async def test_lost_ack_and_callback_are_recovered_by_pull(harness: Harness) -> None:
    assert (await harness.api.call("POST", "/v1/payments/mpesa/pull/register")).data["response_code"] == "1000"
    assert (await harness.api.call("POST", "/v1/payments/mpesa/pull/register")).data["response_code"] == "1001"
    made = (await harness.api.pay(VANISHES, 700, key="lost")).data
    assert made["provider_ref"] is None

    async def moved() -> Any:
        return (await harness.api.call("GET", "/simulator/control/ledger")).data

    await eventually(moved)
    run = (await reconcile(harness)).data
    assert (run["status"], run["lines"], run["recovered"]) == ("completed", 1, 1)
    payment = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
    assert (payment["status"], payment["timeline"][-1]["cause"]) == ("completed", "statement")
    (webhook,) = await harness.receiver.wait_for(1, kind="payment.completed")
    assert webhook.json["data"]["receipt"] == payment["receipt"]
    again = (await reconcile(harness)).data
    assert (again["already_known"], again["recovered"]) == (1, 0)
    detail = await harness.api.call("GET", f"/v1/payments/mpesa/reconciliations/{run['id']}?outcome=recovered")
    (row,) = detail.data["rows"]
    assert (row["payment_id"], row["finding"]) == (made["id"], "recovered")


async def test_mismatch_is_completed_when_the_statement_shows_the_right_amount(
    harness: Harness,
) -> None:
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    made = (await harness.api.pay(SAYS_ANOTHER_AMOUNT, 90, key="held")).data
    await harness.receiver.wait_for(1, kind="payment.mismatched")
    held = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
    assert (held["status"], held["mismatch"]["of"], held["mismatch"]["received_amount"]) == (
        "pending",
        "amount",
        "91.00",
    )
    assert (await reconcile(harness)).data["recovered"] == 1
    payment = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
    (entry,) = (await harness.api.call("GET", "/simulator/control/ledger")).data
    assert (payment["status"], payment["amount"], payment["receipt"]) == ("completed", "90.00", entry["receipt"])
    assert len(await harness.receiver.wait_for(1, kind="payment.completed")) == 1


async def test_refund_is_sent_once_and_delivered_as_a_webhook(harness: Harness) -> None:
    payment = await paid(harness)
    body = {"payment_id": payment["id"], "reason": "Out of stock"}
    answers = await asyncio.gather(
        *(harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "r1"}) for _ in range(10))
    )
    made = [answer for answer in answers if answer.status == 201]
    assert len(made) == 1
    assert {answer.status for answer in answers} <= {200, 201, 409}
    assert made[0].headers["Location"] == f"{harness.base}/v1/refunds/{made[0].data['id']}"
    refund = await refunded(harness, made[0].data["id"], "completed")
    assert (refund["outcome"], refund["amount"]) == ("reversed", "500.00")
    again = await harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "r1"})
    assert (again.status, again.data["id"], again.headers["Idempotent-Replayed"]) == (200, refund["id"], "true")
    after = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (after["status"], after["refunded_amount"]) == ("reversed", "500.00")
    (webhook,) = await harness.receiver.wait_for(1, kind="payment.reversed")
    assert webhook.json["data"]["refund_id"] == refund["id"]
    # Without an amount the call is idempotent by itself.
    unkeyed = await harness.api.call("POST", "/v1/refunds", body)
    assert (unkeyed.status, unkeyed.data["id"], unkeyed.headers["Idempotent-Replayed"]) == (200, refund["id"], "true")
    (entry,) = (await harness.api.call("GET", "/simulator/control/ledger")).data
    assert entry["returned"] == 500


async def test_concurrent_refunds_never_exceed_the_payment(harness: Harness) -> None:
    payment = await paid(harness, amount=100)
    answers = await asyncio.gather(
        *(
            harness.api.call(
                "POST",
                "/v1/refunds",
                {"payment_id": payment["id"], "amount": 30},
                headers={"Idempotency-Key": f"part-{number}"},
            )
            for number in range(8)
        )
    )
    made = [answer.data for answer in answers if answer.status == 201]
    assert len(made) == 3
    for refund in made:
        await refunded(harness, refund["id"], "completed")
    after = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (after["status"], after["refunded_amount"]) == ("partially_reversed", "90.00")
    rest = (await harness.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})).data
    assert rest["amount"] == "10.00"
    await refunded(harness, rest["id"], "completed")
    assert (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == "reversed"
    assert len(await harness.receiver.wait_for(4, kind="payment.reversed")) == 4


async def test_statement_line_fitting_two_payments_matches_neither(harness: Harness) -> None:
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    await habit(harness, pullquery="partial_msisdn")
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 600})
    first = (await harness.api.pay("254711000018", 60, key="one", reference="table 4")).data
    second = (await harness.api.pay("254711999018", 60, key="two", reference="table 4")).data
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 0.05})
    money = {"phone": "254711000018", "amount": 60, "shortcode": "174379", "reference": "table 4"}
    await harness.api.call("POST", "/simulator/control/ledger", money)
    run = (await reconcile(harness)).data
    assert (run["ambiguous"], run["recovered"]) == (1, 0)
    # A status query shows the payer's whole number, which decides.
    payment = await harness.api.settled(first["id"], "completed")
    assert payment["timeline"][-1]["cause"] == "status_query"
    assert (await harness.api.call("GET", f"/v1/payments/{second['id']}")).data["status"] == "pending"
    assert (await reconcile(harness)).data["already_known"] == 1


async def test_ambiguous_line_is_resolved_within_one_account_only(harness: Harness) -> None:
    """M-Pesa's result about a receipt shows the payer and the amount, not the account number of the statement line."""
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    await habit(harness, pullquery="partial_msisdn", transactionstatus="late")
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 600, "late_delay": 600})
    other = (await harness.api.pay("254711000018", 60, key="other")).data
    first = (await harness.api.pay("254711000018", 60, key="one", reference="table 4")).data
    await harness.api.pay("254711999018", 60, key="two", reference="table 4")
    money = {"phone": "254711000018", "amount": 60, "shortcode": "174379", "reference": "table 4"}
    await harness.api.call("POST", "/simulator/control/ledger", money)
    assert (await reconcile(harness)).data["ambiguous"] == 1
    # Before the result arrives, other money completes the payment that it would have matched.
    prompt = f"/simulator/control/pushes/{first['provider_ref']}/answer"
    assert (await harness.api.call("POST", prompt, {"answer": "pay"})).status == 200
    await harness.api.settled(first["id"], "completed")
    await harness.gateway.db.execute("UPDATE sim_result SET due_at = now()")

    async def answered() -> Any:
        return await harness.gateway.db.fetchrow("SELECT * FROM noted_line WHERE finding <> 'ambiguous'")

    line = await eventually(answered)
    assert (line["finding"], line["payment_id"]) == ("not_found", None)
    assert (await harness.api.call("GET", f"/v1/payments/{other['id']}")).data["status"] == "pending"


async def test_refund_of_a_retired_shortcode_is_queried_with_its_credentials(harness: Harness) -> None:
    await habit(harness, reversal="never")
    payment = await paid(harness)
    refund = (await harness.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})).data
    assert (await harness.api.call("DELETE", "/v1/merchant/providers/mpesa")).status == 200
    db, refund_id = harness.gateway.db, refund["id"]
    await db.execute("UPDATE refund SET due_at = now() - interval '1 s' WHERE refund_id = $1", refund_id)
    assert await harness.gateway.services.get(RefundStatusQueries).ask(refund_id)
    assert await db.fetchval("SELECT due_at > now() + interval '90 s' FROM refund WHERE refund_id = $1", refund_id)
    query = await harness.api.call("POST", f"/v1/refunds/{refund_id}/query")
    assert (query.status, query.data["id"]) == (200, refund_id)
