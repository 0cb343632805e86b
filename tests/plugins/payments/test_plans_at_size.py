"""Protects the plan cache: each hot statement gets a generic plan after five executions on a connection."""

from typing import Any

import asyncpg
import pytest

from mpesa_gateway.db import outbox
from mpesa_gateway.db.deferred import join_statements
from mpesa_gateway.testing.serving import running_gateway, shop
from mpesa_gateway_callbacks import tables as callbacks
from mpesa_gateway_payments import tables as payments
from mpesa_gateway_payments import transition_sql
from mpesa_gateway_transactions import tables as transactions
from mpesa_gateway_webhooks import tables as webhooks
from tests.plugins.payments.test_lists_at_size import FILL, MANY

pytestmark = pytest.mark.as_owner

END = join_statements(
    (
        (transition_sql.UPDATE_PAYMENTS, len(transition_sql.WRITTEN), True, None),
        (transactions.INSERT, len(transactions.BOTH.names), True, transactions.WITNESS),
        (transition_sql.STEPS, 6, False, None),
        (outbox.INSERT_EVENTS.sql, len(outbox.INSERT_EVENTS.names), False, None),
        (webhooks.FAN_OUT, 7, False, None),
        (callbacks.KEEP.sql, len(callbacks.KEEP.names), True, None),
    )
)
"""The joined statement with which callbacks end payments."""

HOT = {
    "insert": payments.INSERT.sql,
    "accept": payments.ACCEPTED,
    "look": payments.READ,
    "look by handle": payments.READ_BY_CHECKOUT,
    "end": END,
    "claim": webhooks.CLAIM,
    "delivered": webhooks.DELIVERED,
    "hand back": webhooks.RELEASE,
}

AGAIN = 12
"""Executions of each statement: Postgres plans the first five for their values and then chooses a generic plan."""

_NOTHING: dict[str, Any] = {"int8": 0, "timestamptz": None}
"""The parameter of a statement that is not a list."""


@pytest.fixture
async def plans(values: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The number of generic and custom plans of each statement."""
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        merchant_id = (await api.pay("254708374149", key="first")).data["merchant_id"]
        connection = await gateway.db.connect()
        try:
            shortcode_id = await connection.fetchval("SELECT shortcode_id FROM shortcode")
            await connection.execute(FILL, merchant_id, MANY, shortcode_id)
            await connection.execute("ANALYZE payment")
            found: dict[str, tuple[int, int]] = {}
            for name, sql in HOT.items():
                found[name] = await _planned(connection, gateway.db.columns.spell_out(sql))
            return found
        finally:
            await connection.close()


async def _planned(connection: "asyncpg.Connection[asyncpg.Record]", sql: str) -> tuple[int, int]:
    statement = await connection.prepare(sql)
    given: list[Any] = [[] if kind.kind == "array" else _NOTHING[kind.name] for kind in statement.get_parameters()]
    for _ in range(AGAIN):
        await statement.fetch(*given)
    row = await connection.fetchrow(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1", sql
    )
    assert row is not None
    return row["generic_plans"], row["custom_plans"]


async def test_hot_statements_use_generic_plans_after_five_executions(plans: dict[str, tuple[int, int]]) -> None:
    assert {name: made for name, (_, made) in plans.items() if made > 5} == {}
    assert {kept for kept, _ in plans.values()} == {AGAIN - 5}
