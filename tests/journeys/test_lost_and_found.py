"""Money whose news was lost, and money that goes back: found again by asking, told once, never sent twice."""

import asyncio
from typing import Any

import pytest

from mpesa_gateway.testing.serving import Answer, eventually
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from tests.conftest import Town

SILENT = "254700000007"
"""Pays, and Daraja never calls back."""

SAYS_ANOTHER_AMOUNT = "254700000011"
"""Pays what was asked for, and the callback says one shilling more."""

VANISHES = "254700000021"
"""Pays, and neither the push's answer nor a callback ever says so."""

pytestmark = pytest.mark.usefixtures("initiated")


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Questions are asked soon."""
    return values | {"payments": {"query_after": [1], "expire_after": 60}, "simulator": {"callback_delay": 0.05}}


async def habit(town: Town, **habits: str) -> None:
    """Make Daraja misbehave."""
    assert (await town.api.call("PATCH", "/simulator/control/habits", habits)).status == 200


async def paid(town: Town, key: str = "a", phone: str = "254711000001", amount: int = 500, **more: Any) -> Any:
    """A payment that has been completed."""
    made = (await town.api.pay(phone, amount, key=key, **more)).data
    return await town.api.settled(made["id"], "completed")


async def refunded(town: Town, refund_id: str, status: str) -> Any:
    """A refund once it has this status."""

    async def look() -> Any:
        found = (await town.api.call("GET", f"/v1/refunds/{refund_id}")).data
        return found if found["status"] == status else None

    return await eventually(look)


async def reconcile(town: Town, body: dict[str, Any] | None = None) -> Answer:
    """A run over the last two hours."""
    return await town.api.call("POST", "/v1/payments/mpesa/reconcile", body or {})


async def test_a_payment_whose_callback_is_lost_is_completed_by_stk_query_and_gets_its_receipt_later(
    town: Town,
) -> None:
    payment = await paid(town, phone=SILENT)
    assert payment["receipt"] is None
    assert payment["timeline"][-1]["cause"] == "stk_query"
    asked = (await town.api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")).data
    assert (asked["ResponseCode"], asked["payment_id"]) == ("0", payment["id"])

    async def look() -> Any:
        return (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data["receipt"]

    receipt = await eventually(look)
    (entry,) = (await town.api.call("GET", "/simulator/control/ledger")).data
    assert entry["receipt"] == receipt
    check = (await town.api.call("GET", f"/v1/payments/mpesa/checks/{asked['check_id']}")).data
    assert (check["state"], check["finding"]) == ("answered", "already_known")
    assert len(await town.receiver.wait_for(1)) == 1


async def test_a_payment_whose_ack_and_callback_are_lost_is_recovered_by_pull(town: Town) -> None:
    assert (await town.api.call("POST", "/v1/payments/mpesa/pull/register")).data["response_code"] == "1000"
    assert (await town.api.call("POST", "/v1/payments/mpesa/pull/register")).data["response_code"] == "1001"
    made = (await town.api.pay(VANISHES, 700, key="lost")).data
    assert made["provider_ref"] is None

    async def moved() -> Any:
        return (await town.api.call("GET", "/simulator/control/ledger")).data

    await eventually(moved)
    run = (await reconcile(town)).data
    assert (run["status"], run["lines"], run["recovered"]) == ("completed", 1, 1)
    payment = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data
    assert (payment["status"], payment["timeline"][-1]["cause"]) == ("completed", "statement")
    (webhook,) = await town.receiver.wait_for(1, kind="payment.completed")
    assert webhook.json["data"]["receipt"] == payment["receipt"]
    again = (await reconcile(town)).data
    assert (again["already_known"], again["recovered"]) == (1, 0)
    detail = await town.api.call("GET", f"/v1/payments/mpesa/reconciliations/{run['id']}?outcome=recovered")
    (row,) = detail.data["rows"]
    assert (row["payment_id"], row["finding"]) == (made["id"], "recovered")


async def test_a_payment_held_for_its_amount_is_completed_when_the_statement_shows_the_amount_asked_for(
    town: Town,
) -> None:
    await town.api.call("POST", "/v1/payments/mpesa/pull/register")
    made = (await town.api.pay(SAYS_ANOTHER_AMOUNT, 90, key="held")).data
    await town.receiver.wait_for(1, kind="payment.mismatched")
    held = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data
    assert (held["status"], held["mismatch"]["of"], held["mismatch"]["received_amount"]) == (
        "pending",
        "amount",
        "91.00",
    )
    assert (await reconcile(town)).data["recovered"] == 1
    payment = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data
    (entry,) = (await town.api.call("GET", "/simulator/control/ledger")).data
    assert (payment["status"], payment["amount"], payment["receipt"]) == ("completed", "90.00", entry["receipt"])
    assert len(await town.receiver.wait_for(1, kind="payment.completed")) == 1


async def test_a_refund_goes_back_once_and_the_merchant_hears_of_it(town: Town) -> None:
    payment = await paid(town)
    body = {"payment_id": payment["id"], "reason": "Out of stock"}
    answers = await asyncio.gather(
        *(town.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "r1"}) for _ in range(10))
    )
    made = [answer for answer in answers if answer.status == 201]
    assert len(made) == 1
    assert {answer.status for answer in answers} <= {200, 201, 409}
    assert made[0].headers["Location"] == f"{town.base}/v1/refunds/{made[0].data['id']}"
    refund = await refunded(town, made[0].data["id"], "completed")
    assert (refund["outcome"], refund["amount"]) == ("reversed", "500.00")
    again = await town.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "r1"})
    assert (again.status, again.data["id"], again.headers["Idempotent-Replayed"]) == (200, refund["id"], "true")
    after = (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (after["status"], after["refunded_amount"]) == ("reversed", "500.00")
    (webhook,) = await town.receiver.wait_for(1, kind="payment.reversed")
    assert webhook.json["data"]["refund_id"] == refund["id"]
    # Without an amount the call is idempotent by itself.
    unkeyed = await town.api.call("POST", "/v1/refunds", body)
    assert (unkeyed.status, unkeyed.data["id"], unkeyed.headers["Idempotent-Replayed"]) == (200, refund["id"], "true")
    (entry,) = (await town.api.call("GET", "/simulator/control/ledger")).data
    assert entry["returned"] == 500


async def test_refunds_never_exceed_the_payment_however_many_are_asked_for_at_once(town: Town) -> None:
    payment = await paid(town, amount=100)
    answers = await asyncio.gather(
        *(
            town.api.call(
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
        await refunded(town, refund["id"], "completed")
    after = (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (after["status"], after["refunded_amount"]) == ("partially_reversed", "90.00")
    rest = (await town.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})).data
    assert rest["amount"] == "10.00"
    await refunded(town, rest["id"], "completed")
    assert (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == "reversed"
    assert len(await town.receiver.wait_for(4, kind="payment.reversed")) == 4


async def test_two_payments_that_fit_one_line_are_never_guessed_between(town: Town) -> None:
    await town.api.call("POST", "/v1/payments/mpesa/pull/register")
    await habit(town, pullquery="partial_msisdn")
    await town.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 600})
    first = (await town.api.pay("254711000018", 60, key="one", reference="table 4")).data
    second = (await town.api.pay("254711999018", 60, key="two", reference="table 4")).data
    await town.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 0.05})
    money = {"phone": "254711000018", "amount": 60, "shortcode": "174379", "reference": "table 4"}
    await town.api.call("POST", "/simulator/control/ledger", money)
    run = (await reconcile(town)).data
    assert (run["ambiguous"], run["recovered"]) == (1, 0)
    # A status query shows the payer's whole number, and decides.
    payment = await town.api.settled(first["id"], "completed")
    assert payment["timeline"][-1]["cause"] == "status_query"
    assert (await town.api.call("GET", f"/v1/payments/{second['id']}")).data["status"] == "pending"
    assert (await reconcile(town)).data["already_known"] == 1


async def test_what_a_question_decides_between_is_money_for_the_same_account(town: Town) -> None:
    """M-Pesa's answer about a receipt shows the payer and the amount, and not the account that the line named."""
    await town.api.call("POST", "/v1/payments/mpesa/pull/register")
    await habit(town, pullquery="partial_msisdn", transactionstatus="late")
    await town.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 600, "late_delay": 600})
    other = (await town.api.pay("254711000018", 60, key="other")).data
    first = (await town.api.pay("254711000018", 60, key="one", reference="table 4")).data
    await town.api.pay("254711999018", 60, key="two", reference="table 4")
    money = {"phone": "254711000018", "amount": 60, "shortcode": "174379", "reference": "table 4"}
    await town.api.call("POST", "/simulator/control/ledger", money)
    assert (await reconcile(town)).data["ambiguous"] == 1
    # Before the answer comes, the payment that it would have found is paid with other money.
    prompt = f"/simulator/control/pushes/{first['provider_ref']}/answer"
    assert (await town.api.call("POST", prompt, {"answer": "pay"})).status == 200
    await town.api.settled(first["id"], "completed")
    await town.gateway.db.execute("UPDATE sim_result SET due_at = now()")

    async def answered() -> Any:
        return await town.gateway.db.fetchrow("SELECT * FROM noted_line WHERE finding <> 'ambiguous'")

    line = await eventually(answered)
    assert (line["finding"], line["payment_id"]) == ("not_found", None)
    assert (await town.api.call("GET", f"/v1/payments/{other['id']}")).data["status"] == "pending"


async def test_refund_of_a_retired_shortcode_is_asked_about_with_its_own_credentials(town: Town) -> None:
    await habit(town, reversal="never")
    payment = await paid(town)
    refund = (await town.api.call("POST", "/v1/refunds", {"payment_id": payment["id"]})).data
    assert (await town.api.call("DELETE", "/v1/merchant/providers/mpesa")).status == 200
    db, refund_id = town.gateway.db, refund["id"]
    await db.execute("UPDATE refund SET due_at = now() - interval '1 s' WHERE refund_id = $1", refund_id)
    assert await town.gateway.services.get(RefundStatusQueries).ask(refund_id)
    assert await db.fetchval("SELECT due_at > now() + interval '90 s' FROM refund WHERE refund_id = $1", refund_id)
    asked = await town.api.call("POST", f"/v1/refunds/{refund_id}/query")
    assert (asked.status, asked.data["id"]) == (200, refund_id)
