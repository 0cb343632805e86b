"""Merchants, API keys and the audit log as Piccolo knows them; the migrations say the rest."""

from piccolo.columns import Array, BigInt, Boolean, Bytea, Text, Timestamptz, Varchar
from piccolo.table import Table


class MerchantRow(Table, tablename="merchant"):
    """The account that owns keys, payments and endpoints."""

    merchant_id = Text(primary_key=True)
    name = Text()
    envs = Array(base_column=Text())
    is_active = Boolean()
    created_at = Timestamptz()
    updated_at = Timestamptz()


class ApiKeyRow(Table, tablename="api_key"):
    """One API key, known by its digest."""

    key_id = Text(primary_key=True)
    merchant_id = Text()
    name = Text()
    digest = Bytea()
    env = Text()
    scopes = Array(base_column=Varchar())
    created_at = Timestamptz()
    expires_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)
    last_used_at = Timestamptz(null=True, default=None)


class AuditRow(Table, tablename="audit_entry"):
    """One act that somebody may have to answer for, chained to the one before."""

    number = BigInt(primary_key=True)
    entry_id = Text()
    at = Timestamptz()
    merchant_id = Text(null=True, default=None)
    actor = Text()
    action = Text()
    subject_id = Text(null=True, default=None)
    detail = Text()
    previous_digest = Bytea()
    digest = Bytea()
    recorded_at = Timestamptz()


FIND_KEY = """
SELECT api_key.digest, api_key.merchant_id, api_key.env, api_key.scopes, api_key.expires_at, api_key.revoked_at,
       api_key.last_used_at, merchant.is_active
FROM api_key JOIN merchant USING (merchant_id) WHERE api_key.key_id = $1
"""

TOUCH_KEY = """
UPDATE api_key SET last_used_at = $2 WHERE key_id = $1 AND (last_used_at IS NULL OR last_used_at < $2)
"""

LAST_ENTRY = "SELECT number, digest, at FROM audit_entry ORDER BY number DESC LIMIT 1"

LAST_CUT = "SELECT detail FROM audit_entry WHERE action = 'audit.cut' ORDER BY number DESC LIMIT 1"

LEAST_DAYS = "SELECT least_days FROM audit_policy"

APPEND_ENTRY = "SELECT audit_append($1, $2, $3, $4, $5, $6, $7)"
"""Takes the lock of the chain until the transaction ends. Postgres works out the digest."""
