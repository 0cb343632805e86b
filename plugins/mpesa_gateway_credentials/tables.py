"""Tables and queries of receivers and shortcodes."""

from piccolo.columns import Boolean, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.keyset import KeysetList
from mpesa_gateway.db.named import Named


class ReceiverRow(Table, tablename="receiver"):
    """A paybill or till in one env. In live it has at most one owner."""

    receiver_id = Text(primary_key=True)
    env = Text()
    number = Text()
    kind = Text()
    owner_id = Text(null=True, default=None)
    created_at = Timestamptz()


class ShortcodeRow(Table, tablename="shortcode"):
    """A merchant's right to use a receiver, with sealed credentials."""

    shortcode_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    provider = Text()
    receiver_id = Text()
    store_number = Text(null=True, default=None)
    name = Text(null=True, default=None)
    consumer_key = Text(null=True, default=None)
    consumer_secret = Text(null=True, default=None)
    passkey = Text(null=True, default=None)
    initiator = Text(null=True, default=None)
    security_credential = Text(null=True, default=None)
    result_url = Text(null=True, default=None)
    timeout_url = Text(null=True, default=None)
    nominated_number = Text(null=True, default=None)
    account_reference = Text(null=True, default=None)
    is_default = Boolean()
    is_allowed = Boolean()
    created_at = Timestamptz()
    updated_at = Timestamptz()
    retired_at = Timestamptz(null=True, default=None)
    wiped_at = Timestamptz(null=True, default=None)
    verified_at = Timestamptz(null=True, default=None)


class StoreNumberRow(Table, tablename="store_number"):
    """A store number that credentials of a till state, or stated."""

    env = Text(primary_key=True)
    number = Text()
    receiver_id = Text()
    merchant_id = Text()
    noted_at = Timestamptz()


# raw SQL: lock - serialises changes of a merchant's shortcodes, or of a receiver.
LOCK_MERCHANT = "SELECT merchant_id FROM merchant WHERE merchant_id = $1 FOR NO KEY UPDATE"
"""Inserts that refer to the merchant do not wait for this lock."""

LOCK_RECEIVER = "SELECT * FROM receiver WHERE env = 'live' AND number = $1 FOR NO KEY UPDATE"

# raw SQL: upsert - one statement inserts, replaces or revives a row.
ADD_RECEIVER = """
INSERT INTO receiver (receiver_id, env, number, kind, created_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (env, number) DO UPDATE SET kind = excluded.kind
    WHERE receiver.kind <> excluded.kind AND (receiver.env = 'sandbox' OR receiver.owner_id = $6
        OR (receiver.owner_id IS NULL AND NOT EXISTS (SELECT 1 FROM shortcode
            WHERE shortcode.receiver_id = receiver.receiver_id AND merchant_id <> $6 AND wiped_at IS NULL)))
"""
"""In live, the owner decides the kind; without an owner, a merchant cannot change another's choice."""

STORE = Named("""
INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, store_number, name, consumer_key, consumer_secret,
    passkey, initiator, security_credential, result_url, timeout_url, nominated_number, account_reference, is_default,
    created_at, updated_at)
VALUES ($shortcode_id, $merchant_id, $env, $receiver_id, $store_number, $name, $consumer_key, $consumer_secret,
    $passkey, $initiator, $security_credential, $result_url, $timeout_url, $nominated_number, $account_reference,
    $is_default, $now, $now)
ON CONFLICT (merchant_id, receiver_id) DO UPDATE SET store_number = excluded.store_number,
    name = CASE WHEN $keeps_name THEN shortcode.name ELSE excluded.name END,
    consumer_key = excluded.consumer_key, consumer_secret = excluded.consumer_secret, passkey = excluded.passkey,
    initiator = excluded.initiator, security_credential = excluded.security_credential,
    result_url = excluded.result_url, timeout_url = excluded.timeout_url,
    nominated_number = excluded.nominated_number, account_reference = excluded.account_reference,
    is_default = excluded.is_default,
    updated_at = excluded.updated_at, retired_at = NULL, wiped_at = NULL,
    verified_at = NULL
RETURNING shortcode_id
""")
"""Stores credentials, and revives a retired shortcode."""

# raw SQL: aggregate
ENVS = """
SELECT COALESCE(array_agg(DISTINCT env ORDER BY env), '{}')
FROM shortcode WHERE merchant_id = $1 AND wiped_at IS NULL
"""

# raw SQL: join - a shortcode with its receiver, and its merchant.
_WHOLE = "SELECT shortcode.*, receiver.number, receiver.owner_id FROM shortcode JOIN receiver USING (receiver_id, env)"

USABLE = f"{_WHOLE} WHERE merchant_id = $1 AND retired_at IS NULL ORDER BY is_default DESC, shortcode_id"

ACTIVE = f"{_WHOLE} WHERE merchant_id = $1 AND env = $2 AND retired_at IS NULL ORDER BY shortcode_id"

FIND_NUMBER = f"{_WHOLE} WHERE merchant_id = $1 AND env = $2 AND number = $3 AND wiped_at IS NULL"

FIND = f"{_WHOLE} WHERE shortcode_id = $1"

OF_ENV = f"""
{_WHOLE} WHERE merchant_id = $1 AND env = $2 AND wiped_at IS NULL ORDER BY retired_at IS NOT NULL, shortcode_id
"""

PASSKEYS = """
SELECT shortcode.*, receiver.number FROM shortcode JOIN receiver USING (receiver_id, env)
WHERE merchant_id = $1 AND env = $2 AND passkey IS NOT NULL ORDER BY retired_at IS NOT NULL, shortcode_id
"""

NAMED = """
SELECT number FROM receiver WHERE env = $1 AND number = $2
UNION SELECT receiver.number FROM store_number JOIN receiver USING (receiver_id, env)
    WHERE env = $1 AND store_number.number = $2
"""

STATED = """
SELECT EXISTS (SELECT 1 FROM store_number JOIN receiver USING (receiver_id, env)
    WHERE env = $1 AND store_number.number = $2 AND receiver_id = $3 AND merchant_id = $4
        AND (kind = 'till' OR owner_id IS NULL))
"""
"""Until a live receiver has an owner, its kind may be another merchant's mistake."""

STORES_OF = """
SELECT store_number.number FROM store_number JOIN receiver USING (receiver_id)
WHERE receiver.env = $1 AND receiver.number = $2
"""

WITH_STATEMENTS = """
SELECT shortcode_id, merchant_id, shortcode.env, retired_at
FROM shortcode JOIN receiver USING (receiver_id, env) JOIN merchant USING (merchant_id)
WHERE nominated_number IS NOT NULL AND wiped_at IS NULL AND merchant.is_active
    AND (receiver.owner_id IS NULL OR receiver.owner_id = merchant_id)
ORDER BY shortcode_id
"""

USERS = """
SELECT merchant_id, merchant.name, owner_id = merchant_id AS is_owner, is_allowed, retired_at
FROM shortcode JOIN receiver USING (receiver_id, env) JOIN merchant USING (merchant_id)
WHERE receiver.env = 'live' AND receiver.number = $1 ORDER BY merchant_id
"""

OF_MERCHANT = KeysetList(
    table="shortcode",
    key="shortcode_id",
    prefix="shc",
    source="shortcode JOIN receiver USING (receiver_id, env)",
    columns="shortcode.*, receiver.number, receiver.owner_id",
)

SHORTCODES = KeysetList(
    table="shortcode",
    key="shortcode_id",
    prefix="shc",
    source="shortcode JOIN receiver USING (receiver_id, env) JOIN merchant USING (merchant_id)",
    columns="shortcode.*, receiver.number, receiver.owner_id, merchant.name AS merchant_name",
    of_merchants=False,
)
