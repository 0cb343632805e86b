"""Protects completion: only proof that this payment was paid completes it, expired payments included."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import EAT, SetClock
from mpesa_gateway.testing.serving import INITIATED, Api, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.conftest import Harness
from tests.daraja import PROCESSING, Daraja, DarajaAnswer, fault, result, stk_callback, stk_result

PHONE = "254711000001"
SHOP = "174379 - SHOP"
SOMEBODY = "254799000001 - SOMEBODY"


@pytest.fixture
def callbacks() -> dict[str, Any]:
    """Settings of the callbacks plugin."""
    return {}


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja, callbacks: dict[str, Any]) -> dict[str, Any]:
    """STK queries are sent on demand only."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "callbacks": callbacks,
    }


async def create_payment(harness: Harness, amount: int = 700, key: str = "a", **more: Any) -> Any:
    """Create a payment whose prompt was acknowledged."""
    return (await harness.api.pay(PHONE, amount, key=key, **more)).data


async def get_payment(harness: Harness, payment: Any) -> Any:
    return (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def query_status(harness: Harness, daraja: Daraja, receipt: str, **says: Any) -> str:
    """Send a status query about a receipt and post M-Pesa's result; returns the finding."""
    started = (await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{receipt}")).data
    url = daraja.requests_of("transactionstatus")[-1]["ResultURL"].removeprefix(harness.base)
    values = {
        "ReceiptNo": receipt,
        "TransactionStatus": "Completed",
        "Amount": "700",
        "DebitPartyName": f"{PHONE} - JANE DOE",
        "CreditPartyName": SHOP,
        "FinalisedTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
    }
    body = result(0, says={name: value for name, value in (values | says).items() if value is not None})
    assert (await harness.api.call("POST", url, body)).status == 200
    found = (await harness.api.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).data
    return str(found["finding"])


# -- direction: B1, B2, B3 ------------------------------------------------------------------------------------------

PARTIES: dict[str, dict[str, Any]] = {
    "B1 a payout": {"DebitPartyName": SHOP, "CreditPartyName": SOMEBODY, "ReasonType": "Business Payment to Customer"},
    "B1 to the payer": {"DebitPartyName": SHOP, "CreditPartyName": f"{PHONE} - JANE DOE"},
    "B2 to another shop": {"CreditPartyName": "555555 - OTHER SHOP"},
    "B2 to a shop whose number begins like ours": {"CreditPartyName": "1743790 - OTHER SHOP"},
    "B2 no parties": {"DebitPartyName": None, "CreditPartyName": None},
    "B2 no credit party": {"CreditPartyName": None},
    "a credit party without a number": {"CreditPartyName": "SHOP"},
}


@pytest.mark.usefixtures("initiated")
async def test_status_query_of_money_paid_to_another_receiver_is_not_ours(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    for number, (name, says) in enumerate(PARTIES.items()):
        assert await query_status(harness, daraja, f"UKA1B2C3D{number}", **says) == "not_ours", name
        assert (await get_payment(harness, payment))["status"] == "pending", name
    # A hidden payer or a missing time needs review; only the complete result is the payment's.
    assert await query_status(harness, daraja, "UKA1B2C3E1", DebitPartyName="2547****001 - JANE") == "ambiguous"
    late = f"{datetime.now(EAT) - timedelta(minutes=10):%Y%m%d%H%M%S}"
    assert await query_status(harness, daraja, "UKA1B2C3E2", FinalisedTime=late) == "not_ours"
    assert await query_status(harness, daraja, "UKA1B2C3E3", FinalisedTime=None) == "ambiguous"
    assert await query_status(harness, daraja, "UKA1B2C3E4") == "recovered"
    assert (await get_payment(harness, payment))["receipt"] == "UKA1B2C3E4"


@pytest.mark.usefixtures("initiated")
async def test_status_query_of_a_reversal_receipt_is_not_ours(harness: Harness, daraja: Daraja) -> None:
    paid = await create_payment(harness, key="paid")
    url = harness.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=paid["merchant_id"], subject_id=paid["id"]
    )
    body = stk_callback(paid["provider_ref"], amount=700, receipt="FIRST00001")
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200
    refund = await harness.api.call("POST", "/v1/refunds", {"payment_id": paid["id"]})
    assert refund.status == 201
    address = daraja.requests_of("reversal")[-1]["ResultURL"].removeprefix(harness.base)
    done = result(0, transaction_id="REVERSAL01", says={"OriginalTransactionID": "FIRST00001", "Amount": 700})
    assert (await harness.api.call("POST", address, done)).status == 200
    assert (await get_payment(harness, paid))["status"] == "reversed"
    other = await create_payment(harness, key="other")
    # Also if the result looks like a payment.
    assert await query_status(harness, daraja, "REVERSAL01") == "not_ours"
    assert (await get_payment(harness, other))["status"] == "pending"


# -- tills with one store number ------------------------------------------------------------------------------------

TILL_A, TILL_B, STORE = "5123456", "5123457", "600638"


async def put_till(api: Api, till: str | None, store: str = STORE) -> None:
    fields = INITIATED["mpesa"] | {"shortcode": store} | ({} if till is None else {"till_number": till})
    answer = await api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": fields})
    assert answer.status == 200, answer.body


async def call_back(harness: Harness, payment: Any, receipt: str) -> None:
    """Post the callback of KES 700 to the payment's own address."""
    url = harness.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], amount=700, receipt=receipt)
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200


async def receiver_of(harness: Harness, receipt: str) -> str | None:
    """The number of the receiver that the receipt's transaction is recorded for."""
    sql = "SELECT number FROM transaction JOIN receiver USING (receiver_id) WHERE receipt = $1"
    number: str | None = await harness.gateway.db.fetchval(sql, receipt)
    return number


@pytest.mark.parametrize("till_b", [TILL_B, None], ids=["another till of the store", "the store's number is a paybill"])
async def test_status_query_of_the_store_numbers_money_leaves_it_to_its_receiver(
    harness: Harness, daraja: Daraja, till_b: str | None
) -> None:
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, till_b)
        payment = (await other.pay(PHONE, 700, key="b")).data
        assert await query_status(harness, daraja, "UKA1B2C3D1", CreditPartyName=f"{STORE} - STORE") == "not_ours"
        assert await receiver_of(harness, "UKA1B2C3D1") is None
        await call_back(harness, payment, "UKA1B2C3D1")
        after = (await other.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (after["status"], after["receipt"], after["mismatch"]) == ("completed", "UKA1B2C3D1", None)
    assert await receiver_of(harness, "UKA1B2C3D1") == (till_b or STORE)


async def test_status_query_contradicting_a_payment_by_store_number_leaves_the_money_to_its_till(
    harness: Harness, daraja: Daraja
) -> None:
    await put_till(harness.api, TILL_A)
    own = await create_payment(harness, 900)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = (await other.pay(PHONE, 700, key="b")).data
        says = {"ReceiptNo": "UKA1B2C3D1", "CreditPartyName": f"{STORE} - STORE"}
        # The answer about A's own push states B's money.
        assert await query_status(harness, daraja, own["id"], **says) == "ambiguous"
        assert await receiver_of(harness, "UKA1B2C3D1") is None
        await call_back(harness, payment, "UKA1B2C3D1")
        after = (await other.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (after["status"], after["mismatch"]) == ("completed", None)
    left = await get_payment(harness, own)
    assert (left["status"], left["mismatch"]) == ("pending", None)


async def test_status_query_naming_the_till_itself_records_its_money(harness: Harness, daraja: Daraja) -> None:
    await put_till(harness.api, TILL_A)
    assert await query_status(harness, daraja, "UKA1B2C3D1", CreditPartyName=f"{TILL_A} - SHOP") == "not_ours"
    assert await receiver_of(harness, "UKA1B2C3D1") == TILL_A


async def test_status_query_naming_the_store_number_recovers_the_tills_payment(
    harness: Harness, daraja: Daraja
) -> None:
    await put_till(harness.api, TILL_A)
    payment = await create_payment(harness)
    assert await query_status(harness, daraja, "UKA1B2C3D1", CreditPartyName=f"{STORE} - STORE") == "recovered"
    assert (await get_payment(harness, payment))["receipt"] == "UKA1B2C3D1"
    assert await receiver_of(harness, "UKA1B2C3D1") == TILL_A


# -- our own push: B9, and callbacks without a token ----------------------------------------------------------------


def stk_answer(code: str, handle: str | None) -> DarajaAnswer:
    """The STK query's answer about a push."""
    status, content = stk_result(code)
    return status, content | ({} if handle is None else {"CheckoutRequestID": handle})


async def test_stk_query_answer_about_another_push_changes_nothing(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    for code in ("0", "1032"):
        daraja.add_answers("stkquery", stk_answer(code, "ws_CO_of_another"))
        after = (await harness.api.call("POST", f"/v1/payments/{payment['id']}/query")).data
        assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "sent")
    # The same for Daraja's other id of the push.
    for code in ("0", "1032"):
        status, content = stk_answer(code, payment["provider_ref"])
        daraja.add_answers("stkquery", (status, content | {"MerchantRequestID": "m-of-another"}))
        after = (await harness.api.call("POST", f"/v1/payments/{payment['id']}/query")).data
        assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "sent")
    status, content = stk_answer("0", payment["provider_ref"])
    own = await harness.gateway.db.fetchval("SELECT merchant_request_id FROM payment")
    daraja.add_answers("stkquery", (status, content | {"MerchantRequestID": own}))
    assert (await harness.api.call("POST", f"/v1/payments/{payment['id']}/query")).data["status"] == "completed"


@pytest.mark.parametrize("callbacks", [{"enforce_allowlist": "never"}])
async def test_callback_success_without_proof_is_confirmed_first(harness: Harness, daraja: Daraja) -> None:
    go = daraja.hold("stkquery")
    payment = await create_payment(harness)
    forged = stk_callback(payment["provider_ref"], amount=700, receipt="FORGED0001")
    assert (await harness.api.call("POST", "/v1/webhooks/mpesa", forged)).status == 200
    after = await get_payment(harness, payment)
    assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "confirming")
    daraja.add_answers("stkquery", stk_result("0"))
    go.set()
    await harness.gateway.services.get(StkQueries).query_payment(payment["id"])
    after = await harness.api.settled(payment["id"], "completed")
    # The STK query confirms the payment, but not the receipt.
    assert (after["receipt"], after["timeline"][-1]["cause"]) == (None, "stk_query")
    assert (await harness.api.call("POST", "/v1/webhooks/mpesa", forged | {"x": 1})).status == 200
    assert (await get_payment(harness, payment))["receipt"] is None


@pytest.mark.parametrize("callbacks", [{"enforce_allowlist": "never"}])
async def test_callback_failure_without_proof_fails_no_payment(harness: Harness, daraja: Daraja) -> None:
    go = daraja.hold("stkquery")
    payment = await create_payment(harness)
    forged = stk_callback(payment["provider_ref"], 1032)
    assert (await harness.api.call("POST", "/v1/webhooks/mpesa", forged)).status == 200
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert await harness.gateway.db.fetchval("SELECT due_at <= now() + interval '61 seconds' FROM payment")
    go.set()
    assert (await get_payment(harness, payment))["status"] == "pending"


@pytest.mark.parametrize("callbacks", [{"allowlist": ["127.0.0.0/8"]}])
async def test_callback_from_a_listed_address_needs_no_token(harness: Harness) -> None:
    payment = await create_payment(harness)
    body = stk_callback(payment["provider_ref"], amount=700)
    assert (await harness.api.call("POST", "/v1/webhooks/mpesa", body)).status == 200
    assert (await get_payment(harness, payment))["receipt"] == "TKN4A1B2C3"


FAILURES = [("1032", True), ("2001", True), ("1", True), ("1025", True), ("1037", False), ("1019", False)]


@pytest.mark.parametrize(("code", "is_final"), [*FAILURES, ("26", False), ("9999", False), ("54321", False)])
async def test_callback_failure_is_final_as_its_code_says(harness: Harness, code: str, is_final: bool) -> None:
    payment = await create_payment(harness)
    url = harness.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], code)
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200
    assert (await get_payment(harness, payment))["status"] == "failed"
    assert await harness.gateway.db.fetchval("SELECT outcome_is_final FROM payment") is is_final


# -- H3: queries continue after expiry ------------------------------------------------------------------------------


class ExpiredPayment:
    """A gateway with a stopped clock and no worker, and a shop with one payment."""

    def __init__(self, gateway: Gateway, api: Api, clock: SetClock, payment: dict[str, Any]) -> None:
        self.gateway, self.api, self.clock, self.payment = gateway, api, clock, payment

    async def ask_when_due(self) -> timedelta:
        """Advance the clock until the payment is due and query it; returns the payment's age then."""
        due_at = await self.gateway.db.fetchval("SELECT due_at FROM payment")
        self.clock.advance(max(due_at - self.clock.now(), timedelta(0)))
        await self.gateway.services.get(StkQueries).query_payment(self.payment["id"])
        created_at = await self.gateway.db.fetchval("SELECT created_at FROM payment")
        return self.clock.now() - datetime.fromisoformat(str(created_at))

    async def get_payment(self) -> Any:
        return (await self.api.call("GET", f"/v1/payments/{self.payment['id']}")).data

    async def event_kinds(self) -> list[str]:
        """The types of the payment's events, sorted."""
        rows = await self.gateway.db.fetch("SELECT kind FROM event WHERE subject_id = $1", self.payment["id"])
        return sorted(row["kind"] for row in rows)


@pytest.fixture
async def expired_payment(values: dict[str, Any], daraja: Daraja) -> AsyncGenerator[ExpiredPayment]:
    """A payment that expired while Daraja returned errors."""
    clock = SetClock(datetime(2026, 11, 23, 12, tzinfo=UTC))
    values |= {"worker": {"in_process": False}, "payments": {}}
    async with running_gateway(values, clock=clock) as (gateway, base), shop(gateway, base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        found = ExpiredPayment(gateway, api, clock, (await api.pay(PHONE, 700, key="a")).data)
        daraja.answers["stkquery"] = [fault("500.003.1001", "Internal Server Error")] * 50
        while (await found.get_payment())["status"] == "pending":
            await found.ask_when_due()
        yield found


async def test_expired_payment_is_queried_for_two_days(expired_payment: ExpiredPayment, daraja: Daraja) -> None:
    expired = await expired_payment.get_payment()
    assert (expired["status"], expired["failure_reason"]) == ("failed", "expired")
    before = len(daraja.requests_of("stkquery"))
    ages: list[timedelta] = []
    while await expired_payment.gateway.db.fetchval("SELECT due_at IS NOT NULL FROM payment"):
        ages.append(await expired_payment.ask_when_due())
    assert ages == [timedelta(hours=hours) for hours in (0.5, 1, 3, 6, 12, 24, 48)]
    assert len(daraja.requests_of("stkquery")) - before == 7
    # The merchant can query it after that.
    daraja.answers["stkquery"] = [PROCESSING]
    assert (await expired_payment.api.call("POST", f"/v1/payments/{expired_payment.payment['id']}/query")).data[
        "status"
    ] == "failed"
    assert await expired_payment.gateway.db.fetchval("SELECT due_at FROM payment") is None
    daraja.answers["stkquery"] = [stk_result("0")]
    found = await expired_payment.api.call("POST", f"/v1/payments/{expired_payment.payment['id']}/query")
    assert (found.data["status"], found.data["mismatch"]) == ("completed", None)
    assert await expired_payment.event_kinds() == ["payment.completed", "payment.failed"]


async def test_expired_payment_is_completed_by_a_late_query_success(
    expired_payment: ExpiredPayment, daraja: Daraja
) -> None:
    daraja.answers["stkquery"] = [PROCESSING, stk_result("0")]
    await expired_payment.ask_when_due()
    assert (await expired_payment.get_payment())["status"] == "failed"
    assert await expired_payment.ask_when_due() == timedelta(hours=1)
    after = await expired_payment.get_payment()
    assert (after["status"], after["failure_reason"], after["timeline"][-1]["cause"]) == (
        "completed",
        None,
        "stk_query",
    )
    assert await expired_payment.event_kinds() == ["payment.completed", "payment.failed"]
    assert await expired_payment.gateway.db.fetchval("SELECT due_at FROM payment") is None


async def test_expired_payment_with_a_late_failure_is_queried_no_more(
    expired_payment: ExpiredPayment, daraja: Daraja
) -> None:
    daraja.answers["stkquery"] = [stk_result("1032")]
    await expired_payment.ask_when_due()
    assert (await expired_payment.get_payment())["failure_reason"] == "expired"
    assert await expired_payment.gateway.db.fetchval("SELECT due_at FROM payment") is None


async def test_expired_payment_with_callback_without_receipt_is_confirmed_by_query(
    expired_payment: ExpiredPayment, daraja: Daraja
) -> None:
    url = expired_payment.gateway.services.get(Callbacks).url_for(
        "stk",
        env="sandbox",
        merchant_id=expired_payment.payment["merchant_id"],
        subject_id=expired_payment.payment["id"],
    )
    body = stk_callback(expired_payment.payment["provider_ref"], has_metadata=False)
    assert (await expired_payment.api.call("POST", url.removeprefix(expired_payment.api.base), body)).status == 200
    assert (await expired_payment.get_payment())["status"] == "failed"
    daraja.answers["stkquery"] = [stk_result("0")]
    await expired_payment.ask_when_due()
    assert (await expired_payment.get_payment())["status"] == "completed"


async def test_ask_due_queries_expired_and_pending_payments(expired_payment: ExpiredPayment, daraja: Daraja) -> None:
    queries = expired_payment.gateway.services.get(StkQueries)
    expired_payment.clock.advance(timedelta(minutes=20))
    pending = (await expired_payment.api.pay("254711000002", 700, key="b")).data
    expired_payment.clock.advance(timedelta(minutes=1))
    shortcode_id = await expired_payment.gateway.db.fetchval("SELECT shortcode_id FROM payment LIMIT 1")
    daraja.answers["stkquery"] = [stk_result("0"), stk_result("0")]
    before = len(daraja.requests_of("stkquery"))
    assert await queries.query_due(shortcode_id) == 2
    asked_about = [one["CheckoutRequestID"] for one in daraja.requests_of("stkquery")[before:]]
    assert sorted(asked_about) == sorted([pending["provider_ref"], expired_payment.payment["provider_ref"]])
    assert (await expired_payment.get_payment())["status"] == "completed"
