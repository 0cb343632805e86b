"""What the doctor sees of a merchant's payments."""

from typing import Any

import msgspec
import pytest

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway_payments.doctor import check_payments
from tests.conftest import Town
from tests.looking import levels, only_merchant, seen_by

pytestmark = pytest.mark.as_owner

SILENT = "254700000007"
"""Pays, and Daraja never calls back."""


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Questions are asked soon."""
    return values | {"payments": {"query_after": [1]}, "simulator": {"callback_delay": 0.05}}


async def look(town: Town, env: str = "sandbox") -> dict[str, CheckResult]:
    """What is seen of the one merchant's payments."""
    merchant = msgspec.structs.replace(await only_merchant(town.gateway), envs=(env,))
    return await seen_by(check_payments, town.gateway, merchant=merchant)


async def move_payments_to_live(town: Town) -> None:
    """Make all payments live ones, past the rules that forbid it."""
    async with town.gateway.db.transaction():
        await town.gateway.db.execute("SET LOCAL session_replication_role = replica")
        await town.gateway.db.execute("UPDATE payment SET env = 'live'")


async def test_callbacks_that_come_and_callbacks_that_do_not(town: Town) -> None:
    assert await look(town) == {}
    made = [(await town.api.pay(SILENT, 100 + n, key=f"silent-{n}")).data for n in range(5)]
    for payment in made:
        await town.api.settled(payment["id"], "completed")
    found = (await look(town))["payments.callbacks"]
    assert (found.level, "none of its last 5" in found.text) == ("warning", True)
    # What the sandbox does says nothing of live.
    assert await look(town, "live") == {}
    await move_payments_to_live(town)
    found = (await look(town, "live"))["payments.callbacks"]
    assert (found.level, "none of its last 5" in found.text) == ("problem", True)
    assert await look(town) == {}
    heard = (await town.api.pay("254711000001", key="heard")).data
    await town.api.settled(heard["id"], "completed")
    found = (await look(town))["payments.callbacks"]
    assert (found.level, "1 of its last 1 " in found.text) == ("ok", True)
    await move_payments_to_live(town)
    found = (await look(town, "live"))["payments.callbacks"]
    assert (found.level, "1 of its last 6" in found.text) == ("ok", True)


async def test_money_that_waits_for_a_person(town: Town) -> None:
    await town.api.pay("254700000020", key="held")
    await town.gateway.db.execute("UPDATE payment SET mismatch = 'amount', received_amount = '5', due_at = NULL")
    found = await look(town)
    assert levels(found) == {"payments.held": "warning"}
    assert found["payments.held"].text.startswith("1 ")
