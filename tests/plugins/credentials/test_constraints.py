"""What the tables of credentials refuse, whoever asks: each rule has a statement that breaks it."""

import pytest

from tests.conftest import Town
from tests.constraints import added, refusals

UPDATE = "UPDATE shortcode SET %s"

CASES = {
    "receiver_sandbox_has_no_owner": ["UPDATE receiver SET owner_id = (SELECT merchant_id FROM merchant)"],
    "receiver_env_number_key": [
        "INSERT INTO receiver SELECT 'rcv_2', env, number, kind, owner_id, created_at FROM receiver"
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
    "shortcode_is_of_one_receiver": [UPDATE % "receiver_id = 'rcv_1'"],
    "shortcode_receiver_id_env_fkey": [UPDATE % "env = 'live'"],
    "shortcode_default": [
        """INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, consumer_key, consumer_secret, passkey,
            is_default, created_at, updated_at)
        SELECT 'shc_1', merchant_id, env, 'rcv_1', consumer_key, consumer_secret, passkey, true, now(), now()
        FROM shortcode""",
    ],
    "shortcode_not_deleted": ["DELETE FROM shortcode"],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    told = {"shortcode_told", "receiver_told"}
    rules = added("mpesa_gateway_credentials.migrations", "0004_receivers_and_shortcodes.sql") - told
    assert rules <= set(CASES)


@pytest.mark.usefixtures("initiated")
async def test_the_table_refuses_what_must_not_be(town: Town) -> None:
    db = town.gateway.db
    await db.execute(
        "INSERT INTO receiver (receiver_id, env, number, kind, created_at) "
        "VALUES ('rcv_1', 'sandbox', '600001', 'paybill', now())"
    )
    assert await refusals(db, CASES) == {}
