"""Stored credentials as Piccolo knows them, and the named queries on them."""

from piccolo.columns import Text, Timestamptz
from piccolo.table import Table


class CredentialsRow(Table, tablename="provider_credentials"):
    """One merchant's keys to M-Pesa; the secret ones sealed."""

    merchant_id = Text(primary_key=True)
    provider = Text()
    env = Text()
    consumer_key = Text()
    consumer_secret = Text()
    passkey = Text()
    shortcode = Text()
    till_number = Text(null=True, default=None)
    initiator = Text(null=True, default=None)
    security_credential = Text(null=True, default=None)
    result_url = Text(null=True, default=None)
    timeout_url = Text(null=True, default=None)
    nominated_number = Text(null=True, default=None)
    account_reference = Text(null=True, default=None)
    created_at = Timestamptz()
    updated_at = Timestamptz()


STORE = """
INSERT INTO provider_credentials (merchant_id, env, consumer_key, consumer_secret, passkey, shortcode, till_number,
    initiator, security_credential, result_url, timeout_url, nominated_number, account_reference, created_at,
    updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)
ON CONFLICT (merchant_id) DO UPDATE SET env = excluded.env, consumer_key = excluded.consumer_key,
    consumer_secret = excluded.consumer_secret, passkey = excluded.passkey, shortcode = excluded.shortcode,
    till_number = excluded.till_number, initiator = excluded.initiator,
    security_credential = excluded.security_credential, result_url = excluded.result_url,
    timeout_url = excluded.timeout_url, nominated_number = excluded.nominated_number,
    account_reference = excluded.account_reference, updated_at = excluded.updated_at
"""

FIND = "SELECT * FROM provider_credentials WHERE merchant_id = $1"

FIND_PASSKEY = "SELECT passkey FROM provider_credentials WHERE merchant_id = $1"

WITH_STATEMENTS = """
SELECT merchant_id FROM provider_credentials JOIN merchant USING (merchant_id)
WHERE nominated_number IS NOT NULL AND merchant.is_active ORDER BY merchant_id
"""

REMOVE = "DELETE FROM provider_credentials WHERE merchant_id = $1 RETURNING env"

LIST = """
SELECT provider_credentials.*, merchant.name FROM provider_credentials JOIN merchant USING (merchant_id)
WHERE $1::text IS NULL OR merchant_id < $1 ORDER BY merchant_id DESC LIMIT $2
"""
