"""Protects the doctor's results about a merchant's refunds."""

import pytest

from mpesa_gateway_refunds.doctor import check_refunds
from tests.conftest import Town
from tests.looking import levels, only_merchant, results_of_check


@pytest.mark.usefixtures("initiated")
async def test_doctor_refund_that_needs_attention_is_a_warning(town: Town) -> None:
    merchant = await only_merchant(town.gateway)
    await town.api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})
    made = (await town.api.pay("254711000001", key="a")).data
    await town.api.settled(made["id"], "completed")
    await town.api.call("POST", "/v1/refunds", {"payment_id": made["id"]})
    assert await results_of_check(check_refunds, town.gateway, merchant=merchant) == {}
    await town.gateway.db.execute("UPDATE refund SET attention = 'look', due_at = NULL")
    found = await results_of_check(check_refunds, town.gateway, merchant=merchant)
    assert levels(found) == {"refunds.attention": "warning"}
    assert "resolve" in (found["refunds.attention"].fix or "")
