"""Protects the doctor's results about a merchant's refunds."""

import pytest

from mpesa_gateway_refunds.doctor import check_refunds
from tests.conftest import Harness
from tests.looking import levels, only_merchant, results_of_check


@pytest.mark.usefixtures("initiated")
async def test_doctor_refund_that_needs_attention_is_a_warning(harness: Harness) -> None:
    merchant = await only_merchant(harness.gateway)
    await harness.api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})
    made = (await harness.api.pay("254711000001", key="a")).data
    await harness.api.settled(made["id"], "completed")
    await harness.api.call("POST", "/v1/refunds", {"payment_id": made["id"]})
    assert await results_of_check(check_refunds, harness.gateway, merchant=merchant) == {}
    await harness.gateway.db.execute("UPDATE refund SET attention = 'look', due_at = NULL")
    found = await results_of_check(check_refunds, harness.gateway, merchant=merchant)
    assert levels(found) == {"refunds.attention": "warning"}
    assert "resolve" in (found["refunds.attention"].fix or "")
