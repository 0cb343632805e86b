"""Protects payers of a deactivated merchant: nothing asks them for money, and used keys still return their payment."""

import pytest

from mpesa_gateway.errors import Conflict
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments.api import PaymentRequest
from mpesa_gateway_payments.service import PaymentService
from tests.conftest import Harness

WANTED = PaymentRequest(amount=Kes(5), phone=Msisdn("254711000001"))


async def test_request_for_a_deactivated_merchant_is_refused_except_for_a_used_key(harness: Harness) -> None:
    gateway, payments = harness.gateway, harness.gateway.port(PaymentService)
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    first = await payments.request(merchant_id, "sandbox", WANTED, idempotency_key="used")
    await harness.api.settled(first.payment.id, "completed")
    await gateway.merchants.deactivate(merchant_id, actor="test")
    with pytest.raises(Conflict, match="deactivated"):
        await payments.request(merchant_id, "sandbox", WANTED, idempotency_key="new")
    again = await payments.request(merchant_id, "sandbox", WANTED, idempotency_key="used")
    assert (again.is_replay, again.payment.id) == (True, first.payment.id)
    assert await gateway.db.fetchval("SELECT count(*) FROM payment") == 1
    assert await gateway.db.fetchval("SELECT count(*) FROM idempotency_key") == 1


async def test_unsent_push_of_a_deactivated_merchant_is_not_sent_again(harness: Harness) -> None:
    gateway, payments = harness.gateway, harness.gateway.port(PaymentService)
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    await harness.api.call(
        "POST", "/simulator/control/faults", {"operation": "stkpush", "fault": "500.003.02", "times": 9}
    )
    first = await harness.api.pay("254711000001", 5, key="unsent")
    assert first.status in {502, 503}
    assert await gateway.db.fetchval("SELECT charge FROM payment") == "released"
    await gateway.merchants.deactivate(merchant_id, actor="test")
    with pytest.raises(Conflict, match="deactivated"):
        await payments.request(merchant_id, "sandbox", WANTED, idempotency_key="unsent")
    row = await gateway.db.fetchrow("SELECT charge, push_attempt FROM payment")
    assert row is not None
    assert tuple(row) == ("released", 1)
