"""Protects the constraints of the credentials tables: a statement that violates each one is rejected."""

import pytest

from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

UPDATE = "UPDATE shortcode SET %s"

CASES = {
    "receiver_sandbox_has_no_owner": ["UPDATE receiver SET owner_id = (SELECT merchant_id FROM merchant)"],
    "receiver_env_number_key": [
        f"INSERT INTO receiver SELECT {literal('rcv', 2)}, env, number, kind, owner_id, created_at FROM receiver"  # noqa: S608 - ids that the test chose
    ],
    "shortcode_is_sealed": [
        UPDATE % f"{field} = 'in clear'"
        for field in ("consumer_key", "consumer_secret", "passkey", "security_credential")
    ],
    "shortcode_initiator_is_whole": [UPDATE % "initiator = NULL", UPDATE % "security_credential = NULL"],
    "shortcode_secrets_until_wiped": [
        UPDATE % "passkey = NULL",
        UPDATE % "is_default = false, retired_at = now(), wiped_at = now()",
    ],
    "shortcode_wiped_after_retired": [
        UPDATE % "wiped_at = now(), consumer_key = NULL, consumer_secret = NULL, passkey = NULL, initiator = NULL, "
        "security_credential = NULL"
    ],
    "shortcode_retired_is_no_default": [UPDATE % "retired_at = now()"],
    "shortcode_is_of_one_receiver": [UPDATE % f"receiver_id = {literal('rcv', 1)}"],
    "shortcode_receiver_id_env_fkey": [UPDATE % "env = 'live'"],
    "shortcode_default": [
        f"""INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, consumer_key, consumer_secret, passkey,
            is_default, created_at, updated_at)
        SELECT {literal("shc")}, merchant_id, env, {literal("rcv", 1)}, consumer_key, consumer_secret, passkey, true,
            now(), now()
        FROM shortcode""",  # noqa: S608 - ids that the test chose
    ],
    "store_number_append_only": ["DELETE FROM store_number", "UPDATE store_number SET number = '600002'"],
    "shortcode_not_deleted": ["DELETE FROM shortcode"],
}


def test_constraints_each_have_a_violating_statement() -> None:
    assert set(CASES) >= added("mpesa_gateway_credentials.migrations")


@pytest.mark.usefixtures("initiated")
async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    db = harness.gateway.db
    await db.execute(
        "INSERT INTO receiver (receiver_id, env, number, kind, created_at) "  # noqa: S608 - ids that the test chose
        f"VALUES ({literal('rcv', 1)}, 'sandbox', '600001', 'paybill', now())"
    )
    await db.execute("UPDATE shortcode SET store_number = '600001'")
    assert await refusals(db, CASES) == {}
