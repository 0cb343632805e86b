"""Protects the doctor's results about a merchant's payments."""

from typing import Any

import msgspec
import pytest

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway_payments.doctor import check_payments
from tests.conftest import Harness
from tests.looking import levels, only_merchant, results_of_check

pytestmark = pytest.mark.as_owner

SILENT = "254700000007"
"""The payer pays, and Daraja never calls back."""


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """The first STK query is sent soon."""
    return values | {"payments": {"query_after": [1]}, "simulator": {"callback_delay": 0.05}}


async def results_of(harness: Harness, env: str = "sandbox") -> dict[str, CheckResult]:
    """The doctor's results for the only merchant's payments."""
    merchant = msgspec.structs.replace(await only_merchant(harness.gateway), envs=(env,))
    return await results_of_check(check_payments, harness.gateway, merchant=merchant)


async def move_payments_to_live(harness: Harness) -> None:
    """Set the env of all payments to live, with the triggers disabled."""
    async with harness.gateway.db.transaction():
        await harness.gateway.db.execute("SET LOCAL session_replication_role = replica")
        await harness.gateway.db.execute("UPDATE payment SET env = 'live'")


async def test_doctor_callbacks_missing_and_received_in_each_env(harness: Harness) -> None:
    assert await results_of(harness) == {}
    made = [(await harness.api.pay(SILENT, 100 + n, key=f"silent-{n}")).data for n in range(5)]
    for payment in made:
        await harness.api.settled(payment["id"], "completed")
    found = (await results_of(harness))["payments.callbacks"]
    assert (found.level, "none of its last 5" in found.text) == ("warning", True)
    # Sandbox callbacks say nothing about live.
    assert await results_of(harness, "live") == {}
    await move_payments_to_live(harness)
    found = (await results_of(harness, "live"))["payments.callbacks"]
    assert (found.level, "none of its last 5" in found.text) == ("problem", True)
    assert await results_of(harness) == {}
    with_callback = (await harness.api.pay("254711000001", key="heard")).data
    await harness.api.settled(with_callback["id"], "completed")
    found = (await results_of(harness))["payments.callbacks"]
    assert (found.level, "1 of its last 1 " in found.text) == ("ok", True)
    await move_payments_to_live(harness)
    found = (await results_of(harness, "live"))["payments.callbacks"]
    assert (found.level, "1 of its last 6" in found.text) == ("ok", True)


async def test_doctor_payment_with_mismatch_is_a_warning(harness: Harness) -> None:
    await harness.api.pay("254700000020", key="held")
    await harness.gateway.db.execute("UPDATE payment SET mismatch = 'amount', received_amount = '5', due_at = NULL")
    found = await results_of(harness)
    assert levels(found) == {"payments.held": "warning"}
    assert found["payments.held"].text.startswith("1 ")
