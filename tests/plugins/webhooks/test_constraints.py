"""What the tables of webhooks refuse, whoever asks: each rule has a statement that breaks it."""

from mpesa_gateway.testing.serving import eventually
from tests.conftest import Town
from tests.constraints import added, refusals

UPDATE = "UPDATE delivery SET %s WHERE status = 'delivered'"

CASES = {
    "webhook_endpoint_url_is_web": ["UPDATE webhook_endpoint SET url = 'file:///etc/passwd'"],
    "webhook_endpoint_secrets_are_sealed": [
        "UPDATE webhook_endpoint SET secret = 'whsec_x'",
        "UPDATE webhook_endpoint SET previous_secret = 'whsec_x', previous_until = now()",
    ],
    "delivery_was_taken": [
        UPDATE % "delivered_at = NULL",
        UPDATE % "last_status = 500",
        UPDATE % "status = 'dead'",
    ],
    "delivery_leased_while_pending": [UPDATE % "leased_until = now()"],
    "attempt_ms_check": ["UPDATE attempt SET ms = -1"],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    assert set(CASES) == added("mpesa_gateway_webhooks.migrations", "0002_what_always_holds.sql")


async def test_the_tables_refuse_what_must_not_be(town: Town) -> None:
    made = await town.api.pay("254711000080", key="order")
    await town.api.settled(made.data["id"], "completed")
    await eventually(lambda: town.gateway.db.fetchval("SELECT delivery_id FROM delivery WHERE status = 'delivered'"))
    assert await refusals(town.gateway.db, CASES) == {}
