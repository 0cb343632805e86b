"""A database of before shortcodes is taken over: what was stored, asked for and sent back keeps its shortcode."""

from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import migrate
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway_credentials.reader import CredentialReader

pytestmark = pytest.mark.as_owner

BEFORE = {
    "kernel": 7,
    "credentials": 3,
    "callbacks": 5,
    "transactions": 0,
    "payments": 12,
    "refunds": 4,
    "reconciliation": 5,
    "webhooks": 5,
    "ops": 2,
    "simulator": 4,
}
"""The last migration of each owner before there were shortcodes."""

WORLD = """
INSERT INTO merchant (merchant_id, name, env, created_at, updated_at)
VALUES ('mer_1', 'Till', 'live', now(), now()), ('mer_2', 'Paybill', 'sandbox', now(), now()),
    ('mer_3', 'Removed', 'sandbox', now(), now());
INSERT INTO provider_credentials (merchant_id, env, consumer_key, consumer_secret, passkey, shortcode, till_number,
    initiator, security_credential, nominated_number, account_reference, created_at, updated_at)
VALUES ('mer_1', 'live', 'v1.a', 'v1.a', 'v1.a', '600001', '5123456', 'api', 'v1.a', '254708374149', 'SHOP', now(),
        now()),
    ('mer_2', 'sandbox', 'v1.a', 'v1.a', 'v1.a', '174379', NULL, NULL, NULL, NULL, NULL, now(), now());
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, amount, currency, phone, reference,
    reference_is_ours, description, idempotency_key, status, receipt, failure_reason, completed_at, expires_at,
    created_at, updated_at)
SELECT payment_id, merchant_id, env, 'mpesa', number, 500, 'KES', '254711000001', 'R', false, 'P', payment_id, status,
    receipt, CASE status WHEN 'failed' THEN 'other' END, CASE status WHEN 'completed' THEN now() END, now(),
    now(), now()
FROM (VALUES ('pay_1', 'mer_1', 'live', '600001', 'completed', 'TKN4A1B2C3'),
    ('pay_2', 'mer_2', 'sandbox', '174379', 'failed', NULL),
    ('pay_3', 'mer_2', 'sandbox', '600009', 'failed', NULL),
    ('pay_4', 'mer_3', 'sandbox', '174379', 'failed', NULL),
    ('pay_5', 'mer_1', 'sandbox', '600001', 'failed', NULL))
    AS made(payment_id, merchant_id, env, number, status, receipt);
INSERT INTO refund (refund_id, merchant_id, payment_id, env, amount, payment_amount, receipt, due_at, created_at,
    updated_at, shortcode)
VALUES ('rfd_1', 'mer_1', 'pay_1', 'live', 100, 500, 'TKN4A1B2C3', now(), now(), now(), '600001');
INSERT INTO status_check (check_id, merchant_id, env, shortcode, payment_id, created_at)
VALUES ('chk_1', 'mer_1', 'live', '600001', 'pay_1', now());
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at)
VALUES ('run_1', 'mer_1', 'live', '5123456', 'cron', now() - interval '2 hours', now(), now(), now()),
    ('run_2', 'mer_3', 'sandbox', '600010', 'cron', now() - interval '2 hours', now(), now(), now());
"""

BOUND = """
SELECT payment_id, payment.shortcode, number, store_number, payment.env = receiver.env
    AND payment.merchant_id = shortcode.merchant_id AS fits, retired_at IS NOT NULL AND wiped_at IS NOT NULL AS is_wiped
FROM payment JOIN shortcode USING (shortcode_id) JOIN receiver USING (receiver_id) ORDER BY payment_id
"""


@pytest.fixture
def settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a gateway without a worker."""
    return values | {"worker": {"in_process": False}}


async def test_what_there_was_is_bound_to_shortcodes_without_secrets(settings: dict[str, Any]) -> None:
    gateway = Gateway(GatewayConfig.from_values(settings))
    db = Database(gateway.config.database)
    await db.start()
    await migrate(db, [one for one in gateway.migrations if one.number <= BEFORE[one.owner]])
    await db.execute(WORLD)
    await db.stop()
    async with gateway.running():
        rows = [tuple(row) for row in await gateway.db.fetch(BOUND)]
        assert rows == [
            ("pay_1", "5123456", "5123456", "600001", True, True),
            ("pay_2", "174379", "174379", None, True, True),
            ("pay_3", "600009", "600009", None, True, True),
            ("pay_4", "174379", "174379", None, True, True),
            ("pay_5", "600001", "600001", None, True, True),
        ]
        one = (
            "SELECT shortcode, shortcode_id = (SELECT shortcode_id FROM payment WHERE payment_id = 'pay_1') FROM refund"
        )
        assert tuple(await gateway.db.fetchrow(one) or ()) == ("5123456", True)
        assert await gateway.db.fetchval("SELECT shortcode FROM status_check") == "5123456"
        runs = "SELECT bool_and(number = shortcode) FROM reconciliation_run JOIN receiver USING (receiver_id)"
        assert await gateway.db.fetchval(runs) is True
        assert await gateway.db.fetchval("SELECT count(*) FROM receiver") == 5
        envs = {merchant.merchant_id: merchant.envs for merchant in await gateway.merchants.page(9)}
        assert envs == {"mer_1": ("live",), "mer_2": ("sandbox",), "mer_3": ()}
        kept = dict(
            await gateway.db.fetchrow("SELECT * FROM shortcode WHERE merchant_id = 'mer_1' AND env = 'live'") or {}
        )
        assert (kept["nominated_number"], kept["account_reference"]) == ("254708374149", "SHOP")
        with pytest.raises(ProviderNotConfigured, match="5123456 were retired and erased: store them again"):
            await gateway.services.get(CredentialReader).of_shortcode(kept["shortcode_id"])
