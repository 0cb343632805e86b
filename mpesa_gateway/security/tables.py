"""Tables of merchants, API keys and the audit log."""

from piccolo.columns import Array, BigInt, Boolean, Bytea, Integer, Text, Timestamptz, Varchar
from piccolo.table import Table


class MerchantRow(Table, tablename="merchant"):
    """A merchant."""

    merchant_id = Text(primary_key=True)
    name = Text()
    envs = Array(base_column=Text())
    is_active = Boolean()
    created_at = Timestamptz()
    updated_at = Timestamptz()


class ApiKeyRow(Table, tablename="api_key"):
    """An API key, identified by its digest."""

    key_id = Text(primary_key=True)
    merchant_id = Text()
    name = Text()
    digest = Bytea()
    env = Text()
    scopes = Array(base_column=Varchar())
    created_at = Timestamptz()
    created_by = Text()
    expires_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)
    last_used_at = Timestamptz(null=True, default=None)


class AuditRow(Table, tablename="audit_entry"):
    """An entry, chained to the one before."""

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


class AuditCheckpointRow(Table, tablename="audit_checkpoint"):
    """The last deleted entry."""

    is_the_only_one = Boolean(primary_key=True)
    number = BigInt()
    digest = Bytea()


class AuditPolicyRow(Table, tablename="audit_policy"):
    """Retention in days and its minimum so far; 0 means unlimited."""

    is_the_only_one = Boolean(primary_key=True)
    keep_days = Integer()
    least_days = Integer()


class GatewaySecretRow(Table, tablename="gateway_secret"):
    """A sealed secret."""

    name = Text(primary_key=True)
    sealed = Text()
    created_at = Timestamptz()


# raw SQL: join - a key with its merchant.
FIND_KEY = """
SELECT api_key.digest, api_key.merchant_id, api_key.env, api_key.scopes, api_key.expires_at, api_key.revoked_at,
       api_key.last_used_at, merchant.is_active
FROM api_key JOIN merchant USING (merchant_id) WHERE api_key.key_id = $1
"""

# raw SQL: function - our own, in a migration.
APPEND_ENTRY = "SELECT audit_append($1, $2, $3, $4, $5, $6, $7)"
"""Locks the chain until the transaction ends."""
