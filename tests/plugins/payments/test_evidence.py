"""What M-Pesa reports completes a payment only where it proves that the payment was paid; expiry stops no question."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import EAT, SetClock
from mpesa_gateway.testing.serving import INITIATED, Api, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.conftest import Town
from tests.daraja import PROCESSING, Daraja, Said, fault, result, stk_callback, stk_result

PHONE = "254711000001"
SHOP = "174379 - SHOP"
SOMEBODY = "254799000001 - SOMEBODY"


@pytest.fixture
def callbacks() -> dict[str, Any]:
    """Settings of callbacks."""
    return {}


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja, callbacks: dict[str, Any]) -> dict[str, Any]:
    """Questions are asked on demand only."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "callbacks": callbacks,
    }


async def asked(town: Town, amount: int = 700, key: str = "a", **more: Any) -> Any:
    """A payment whose prompt is on the phone."""
    return (await town.api.pay(PHONE, amount, key=key, **more)).data


async def look(town: Town, payment: Any) -> Any:
    """The payment as it is."""
    return (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def check(town: Town, daraja: Daraja, receipt: str, **says: Any) -> str:
    """Ask about a receipt and give M-Pesa's answer; returns the finding."""
    started = (await town.api.call("POST", f"/v1/payments/mpesa/check-status/{receipt}")).data
    url = daraja.of("transactionstatus")[-1]["ResultURL"].removeprefix(town.base)
    values = {
        "ReceiptNo": receipt,
        "TransactionStatus": "Completed",
        "Amount": "700",
        "DebitPartyName": f"{PHONE} - JANE DOE",
        "CreditPartyName": SHOP,
        "FinalisedTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
    }
    body = result(0, says={name: value for name, value in (values | says).items() if value is not None})
    assert (await town.api.call("POST", url, body)).status == 200
    found = (await town.api.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).data
    return str(found["finding"])


# -- direction: B1, B2, B3 ----------------------------------------------------------------------------------------

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
async def test_check_status_of_money_that_did_not_come_to_us_is_not_ours(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    for number, (name, says) in enumerate(PARTIES.items()):
        assert await check(town, daraja, f"UKA1B2C3D{number}", **says) == "not_ours", name
        assert (await look(town, payment))["status"] == "pending", name
    # Hidden, late and early money is for a person; the whole story is the payment's.
    assert await check(town, daraja, "UKA1B2C3E1", DebitPartyName="2547****001 - JANE") == "ambiguous"
    late = f"{datetime.now(EAT) - timedelta(minutes=10):%Y%m%d%H%M%S}"
    assert await check(town, daraja, "UKA1B2C3E2", FinalisedTime=late) == "not_ours"
    assert await check(town, daraja, "UKA1B2C3E3", FinalisedTime=None) == "ambiguous"
    assert await check(town, daraja, "UKA1B2C3E4") == "recovered"
    assert (await look(town, payment))["receipt"] == "UKA1B2C3E4"


@pytest.mark.usefixtures("initiated")
async def test_the_receipt_of_a_refund_pays_for_no_other_payment(town: Town, daraja: Daraja) -> None:
    paid = await asked(town, key="paid")
    url = town.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=paid["merchant_id"], subject_id=paid["id"]
    )
    body = stk_callback(paid["provider_ref"], amount=700, receipt="FIRST00001")
    assert (await town.api.call("POST", url.removeprefix(town.base), body)).status == 200
    refund = await town.api.call("POST", "/v1/refunds", {"payment_id": paid["id"]})
    assert refund.status == 201
    address = daraja.of("reversal")[-1]["ResultURL"].removeprefix(town.base)
    done = result(0, transaction_id="REVERSAL01", says={"OriginalTransactionID": "FIRST00001", "Amount": 700})
    assert (await town.api.call("POST", address, done)).status == 200
    assert (await look(town, paid))["status"] == "reversed"
    other = await asked(town, key="other")
    # Even where the answer looks like a payment to us.
    assert await check(town, daraja, "REVERSAL01") == "not_ours"
    assert (await look(town, other))["status"] == "pending"


# -- our own push: B9, and callbacks without a token --------------------------------------------------------------


def stk_answer(code: str, handle: str | None) -> Said:
    """STK query's answer about a push."""
    status, content = stk_result(code)
    return status, content | ({} if handle is None else {"CheckoutRequestID": handle})


async def test_an_stk_query_answer_about_another_push_says_nothing(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    for code in ("0", "1032"):
        daraja.say("stkquery", stk_answer(code, "ws_CO_of_another"))
        after = (await town.api.call("POST", f"/v1/payments/{payment['id']}/query")).data
        assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "sent")
    # By Daraja's other name of the push, too.
    for code in ("0", "1032"):
        status, content = stk_answer(code, payment["provider_ref"])
        daraja.say("stkquery", (status, content | {"MerchantRequestID": "m-of-another"}))
        after = (await town.api.call("POST", f"/v1/payments/{payment['id']}/query")).data
        assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "sent")
    status, content = stk_answer("0", payment["provider_ref"])
    own = await town.gateway.db.fetchval("SELECT merchant_request_id FROM payment")
    daraja.say("stkquery", (status, content | {"MerchantRequestID": own}))
    assert (await town.api.call("POST", f"/v1/payments/{payment['id']}/query")).data["status"] == "completed"


@pytest.mark.parametrize("callbacks", [{"enforce_allowlist": "never"}])
async def test_a_callback_that_nothing_proves_is_confirmed_before_it_counts(town: Town, daraja: Daraja) -> None:
    go = daraja.hold("stkquery")
    payment = await asked(town)
    forged = stk_callback(payment["provider_ref"], amount=700, receipt="FORGED0001")
    assert (await town.api.call("POST", "/v1/webhooks/mpesa", forged)).status == 200
    after = await look(town, payment)
    assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "confirming")
    daraja.say("stkquery", stk_result("0"))
    go.set()
    await town.gateway.services.get(StkQueries).ask(payment["id"])
    after = await town.api.settled(payment["id"], "completed")
    # M-Pesa says that it was paid, and not by which receipt.
    assert (after["receipt"], after["timeline"][-1]["cause"]) == (None, "stk_query")
    assert (await town.api.call("POST", "/v1/webhooks/mpesa", forged | {"x": 1})).status == 200
    assert (await look(town, payment))["receipt"] is None


@pytest.mark.parametrize("callbacks", [{"enforce_allowlist": "never"}])
async def test_a_failure_that_nothing_proves_fails_nothing(town: Town, daraja: Daraja) -> None:
    go = daraja.hold("stkquery")
    payment = await asked(town)
    forged = stk_callback(payment["provider_ref"], 1032)
    assert (await town.api.call("POST", "/v1/webhooks/mpesa", forged)).status == 200
    assert (await look(town, payment))["status"] == "pending"
    assert await town.gateway.db.fetchval("SELECT due_at <= now() + interval '61 seconds' FROM payment")
    go.set()
    assert (await look(town, payment))["status"] == "pending"


@pytest.mark.parametrize("callbacks", [{"allowlist": ["127.0.0.0/8"]}])
async def test_a_callback_from_a_listed_address_needs_no_token(town: Town) -> None:
    payment = await asked(town)
    body = stk_callback(payment["provider_ref"], amount=700)
    assert (await town.api.call("POST", "/v1/webhooks/mpesa", body)).status == 200
    assert (await look(town, payment))["receipt"] == "TKN4A1B2C3"


FAILURES = [("1032", True), ("2001", True), ("1", True), ("1025", True), ("1037", False), ("1019", False)]


@pytest.mark.parametrize(("code", "is_final"), [*FAILURES, ("26", False), ("9999", False), ("54321", False)])
async def test_a_failure_by_callback_is_final_where_mpesa_means_it(town: Town, code: str, is_final: bool) -> None:
    payment = await asked(town)
    url = town.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], code)
    assert (await town.api.call("POST", url.removeprefix(town.base), body)).status == 200
    assert (await look(town, payment))["status"] == "failed"
    assert await town.gateway.db.fetchval("SELECT outcome_is_final FROM payment") is is_final


# -- H3: expiry informs, and stops nothing ------------------------------------------------------------------------


class Desk:
    """A gateway whose clock stands, with no worker of its own, and a shop with one payment."""

    def __init__(self, gateway: Gateway, api: Api, clock: SetClock, payment: dict[str, Any]) -> None:
        self.gateway, self.api, self.clock, self.payment = gateway, api, clock, payment

    async def ask_when_due(self) -> timedelta:
        """Set the clock to when the payment is due, and ask; returns its age then."""
        due_at = await self.gateway.db.fetchval("SELECT due_at FROM payment")
        self.clock.advance(max(due_at - self.clock.now(), timedelta(0)))
        await self.gateway.services.get(StkQueries).ask(self.payment["id"])
        created_at = await self.gateway.db.fetchval("SELECT created_at FROM payment")
        return self.clock.now() - datetime.fromisoformat(str(created_at))

    async def look(self) -> Any:
        """The payment as it is."""
        return (await self.api.call("GET", f"/v1/payments/{self.payment['id']}")).data

    async def kinds(self) -> list[str]:
        """What was published of it."""
        rows = await self.gateway.db.fetch("SELECT kind FROM event WHERE subject_id = $1", self.payment["id"])
        return sorted(row["kind"] for row in rows)


@pytest.fixture
async def desk(values: dict[str, Any], daraja: Daraja) -> AsyncGenerator[Desk]:
    """A payment that has expired, because M-Pesa was away."""
    clock = SetClock(datetime(2026, 11, 23, 12, tzinfo=UTC))
    values |= {"worker": {"in_process": False}, "payments": {}}
    async with running_gateway(values, clock=clock) as (gateway, base), shop(gateway, base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        found = Desk(gateway, api, clock, (await api.pay(PHONE, 700, key="a")).data)
        daraja.answers["stkquery"] = [fault("500.003.1001", "Internal Server Error")] * 50
        while (await found.look())["status"] == "pending":
            await found.ask_when_due()
        yield found


async def test_an_expired_payment_is_asked_about_for_two_days(desk: Desk, daraja: Daraja) -> None:
    expired = await desk.look()
    assert (expired["status"], expired["failure_reason"]) == ("failed", "expired")
    before = len(daraja.of("stkquery"))
    ages: list[timedelta] = []
    while await desk.gateway.db.fetchval("SELECT due_at IS NOT NULL FROM payment"):
        ages.append(await desk.ask_when_due())
    assert ages == [timedelta(hours=hours) for hours in (0.5, 1, 3, 6, 12, 24, 48)]
    assert len(daraja.of("stkquery")) - before == 7
    # By hand it can be asked about even later.
    daraja.answers["stkquery"] = [PROCESSING]
    assert (await desk.api.call("POST", f"/v1/payments/{desk.payment['id']}/query")).data["status"] == "failed"
    assert await desk.gateway.db.fetchval("SELECT due_at FROM payment") is None
    daraja.answers["stkquery"] = [stk_result("0")]
    found = await desk.api.call("POST", f"/v1/payments/{desk.payment['id']}/query")
    assert (found.data["status"], found.data["mismatch"]) == ("completed", None)
    assert await desk.kinds() == ["payment.completed", "payment.failed"]


async def test_a_late_success_completes_an_expired_payment(desk: Desk, daraja: Daraja) -> None:
    daraja.answers["stkquery"] = [PROCESSING, stk_result("0")]
    await desk.ask_when_due()
    assert (await desk.look())["status"] == "failed"
    assert await desk.ask_when_due() == timedelta(hours=1)
    after = await desk.look()
    assert (after["status"], after["failure_reason"], after["timeline"][-1]["cause"]) == (
        "completed",
        None,
        "stk_query",
    )
    assert await desk.kinds() == ["payment.completed", "payment.failed"]
    assert await desk.gateway.db.fetchval("SELECT due_at FROM payment") is None


async def test_a_late_failure_ends_the_questions(desk: Desk, daraja: Daraja) -> None:
    daraja.answers["stkquery"] = [stk_result("1032")]
    await desk.ask_when_due()
    assert (await desk.look())["failure_reason"] == "expired"
    assert await desk.gateway.db.fetchval("SELECT due_at FROM payment") is None


async def test_a_late_success_by_callback_without_a_receipt_is_asked_about(desk: Desk, daraja: Daraja) -> None:
    url = desk.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=desk.payment["merchant_id"], subject_id=desk.payment["id"]
    )
    body = stk_callback(desk.payment["provider_ref"], has_metadata=False)
    assert (await desk.api.call("POST", url.removeprefix(desk.api.base), body)).status == 200
    assert (await desk.look())["status"] == "failed"
    daraja.answers["stkquery"] = [stk_result("0")]
    await desk.ask_when_due()
    assert (await desk.look())["status"] == "completed"


async def test_the_sweep_asks_about_expired_and_pending_payments(desk: Desk, daraja: Daraja) -> None:
    queries = desk.gateway.services.get(StkQueries)
    desk.clock.advance(timedelta(minutes=20))
    pending = (await desk.api.pay("254711000002", 700, key="b")).data
    desk.clock.advance(timedelta(minutes=1))
    shortcode_id = await desk.gateway.db.fetchval("SELECT shortcode_id FROM payment LIMIT 1")
    daraja.answers["stkquery"] = [stk_result("0"), stk_result("0")]
    before = len(daraja.of("stkquery"))
    assert await queries.ask_due(shortcode_id) == 2
    asked_about = [one["CheckoutRequestID"] for one in daraja.of("stkquery")[before:]]
    assert sorted(asked_about) == sorted([pending["provider_ref"], desk.payment["provider_ref"]])
    assert (await desk.look())["status"] == "completed"
