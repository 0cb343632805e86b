"""Protects the constraints of the webhooks' tables: each has a statement that violates it."""

from mpesa_gateway.testing.serving import eventually
from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

UPDATE = "UPDATE delivery SET %s WHERE status = 'delivered'"
ANOTHER = (
    "INSERT INTO webhook_endpoint (endpoint_id, merchant_id, env, url, secret, created_at, updated_at) "  # noqa: S608 - ids that the test chose
    f"SELECT {literal('whe')}, merchant_id, env, url, secret, now(), now() FROM webhook_endpoint"
)
SAME_ADDRESS = (
    "INSERT INTO webhook_endpoint (endpoint_id, address_id, merchant_id, env, url, secret, created_at, updated_at, "  # noqa: S608 - ids that the test chose
    f"is_active) SELECT {literal('whe')}, address_id, merchant_id, env, url, secret, now(), now(), false "
    "FROM webhook_endpoint"
)
ATTEMPT = (
    "INSERT INTO attempt (attempt_id, delivery_id, at, address_id, status, ms, error) "  # noqa: S608 - ids that the test chose
    f"SELECT {literal('att')}, delivery_id, now(), 1, %s FROM delivery"
)

CASES = {
    "webhook_endpoint_url_is_web": ["UPDATE webhook_endpoint SET url = 'file:///etc/passwd'"],
    "webhook_endpoint_secrets_are_sealed": [
        "UPDATE webhook_endpoint SET secret = 'whsec_x'",
        "UPDATE webhook_endpoint SET previous_secret = 'whsec_x', previous_until = now()",
    ],
    "webhook_endpoint_event_types_are_named": [
        "UPDATE webhook_endpoint SET event_types = '{}'",
        "UPDATE webhook_endpoint SET event_types = ARRAY['payment.failed', NULL]",
    ],
    "webhook_endpoint_check": ["UPDATE webhook_endpoint SET previous_secret = 'v1.x'"],
    "webhook_endpoint_active": [ANOTHER],
    "webhook_endpoint_stays_in_its_env": [
        "UPDATE webhook_endpoint SET merchant_id = (SELECT merchant_id FROM merchant WHERE name = 'Other')"
    ],
    "delivery_check": [UPDATE % "due_at = now()"],
    "delivery_pending_to_an_endpoint": [
        UPDATE % "status = 'pending', due_at = now(), delivered_at = NULL, endpoint_id = NULL"
    ],
    "delivery_endpoint_of_its_env": [UPDATE % "env = 'live'"],
    "delivery_was_taken": [
        UPDATE % "delivered_at = NULL",
        UPDATE % "last_status = 500",
        UPDATE % "status = 'dead'",
    ],
    "delivery_leased_while_pending": [UPDATE % "leased_until = now()"],
    "delivery_ms_check": [UPDATE % "ms = -1"],
    "delivery_answer_of_its_attempt": [
        UPDATE % "ms = NULL, address_id = NULL, answer = 'ok'",
        UPDATE % "answer = ''",
        UPDATE % "answer = repeat('x', 1025)",
    ],
    "delivery_address_of_its_attempt": [UPDATE % "address_id = NULL", UPDATE % "ms = NULL, answer = NULL"],
    "webhook_endpoint_address_id_key": [SAME_ADDRESS],
    "attempt_check": [ATTEMPT % "200, 1, 'connection refused'"],
    "attempt_ms_check": [ATTEMPT % "200, -1, NULL"],
}


def test_constraints_each_have_a_violating_statement() -> None:
    # Deliveries refer to the pair of endpoint_id and env, although endpoint_id alone is unique.
    assert set(CASES) >= added("mpesa_gateway_webhooks.migrations") - {"webhook_endpoint_of_its_env"}


async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    await harness.gateway.merchants.create("Other", actor="test")
    made = await harness.api.pay("254711000080", key="order")
    await harness.api.settled(made.data["id"], "completed")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT delivery_id FROM delivery WHERE status = 'delivered'"))
    assert await refusals(harness.gateway.db, CASES) == {}
