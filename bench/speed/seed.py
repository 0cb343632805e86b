"""Inserts finished payments by SQL with all of their rows: a million in two minutes."""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.ids import Ids, id_of, uuid_of
from mpesa_gateway.security.gateway_secrets import CALLBACK_TOKENS
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.testing.serving import INITIATED
from mpesa_gateway_credentials.schemas import SetProvider
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_webhooks.endpoints import EndpointService

_ACTOR = "cli:bench"

_ID = re.compile(r"ID\[([a-z]{3})\]")


def tag(prefix: str) -> str:
    """Return the four hexadecimal digits of a prefix in the identifiers that begin with it."""
    return uuid_of(Ids.least(prefix, datetime.fromtimestamp(0, UTC))).hex()[12:16]


def _spelt(sql: str, start: datetime) -> str:
    """Return a statement with placeholders replaced: ids begin with the row's time, in the year from ``start``."""
    at = f"(timestamptz '{start.isoformat()}' + n * (interval '365 days' / $2::bigint))"
    milliseconds = "floor(extract(epoch FROM AT) * 1000)::bigint"
    made = f"(lpad(to_hex({milliseconds}), 12, '0') || '{{}}' || lpad(to_hex(n), 16, '0'))::uuid"
    return _ID.sub(lambda found: made.format(tag(found[1])), sql).replace("AT", at)


# $1 merchant, $2 number of payments.
_SEED: Sequence[tuple[str, str]] = (
    (
        "payment",
        """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, metadata, idempotency_key, status, charge, merchant_request_id, checkout_request_id,
    receipt, result_code, result_desc, failure_reason, refunded, due_at, expires_at, created_at, updated_at,
    accepted_at, completed_at, completed_by)
SELECT ID[pay], $1::uuid, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode WHERE merchant_id = $1 ORDER BY shortcode_id LIMIT 1), amount, 'KES',
    '2547' || lpad(((n * 7919) % 200000)::text, 8, '0'),
    CASE WHEN n % 10 < 7 THEN translate(upper(lpad(to_hex(n), 12, 'X')), '0189', 'GHIJ') ELSE 'ORDER' || n % 50000 END,
    n % 10 < 7, 'Payment',
    jsonb_build_object('order', n::text), 'seed-' || n, status, 'accepted', 'm-seed-' || n, 'ws_CO_seed' || n,
    CASE WHEN status IN ('completed', 'reversed') THEN 'S' || upper(lpad(to_hex(n), 9, '0')) END,
    CASE status WHEN 'pending' THEN NULL WHEN 'failed' THEN '1032' ELSE '0' END,
    CASE status WHEN 'pending' THEN NULL WHEN 'failed' THEN 'Request cancelled by user' ELSE 'Processed' END,
    CASE WHEN status = 'failed' THEN 'cancelled_by_user' END,
    CASE WHEN status = 'reversed' THEN amount ELSE 0 END,
    CASE WHEN status = 'pending' THEN now() + interval '10 years' END, at, at, at,
    at + interval '1 second', CASE WHEN status IN ('completed', 'reversed') THEN at + interval '20 seconds' END,
    CASE WHEN status IN ('completed', 'reversed') THEN 'callback' END
FROM (SELECT n, AT AS at, CASE WHEN n % 100 < 80 THEN 'completed' WHEN n % 100 < 95 THEN 'failed'
        WHEN n % 100 < 98 THEN 'reversed' ELSE 'pending' END AS status,
    (1 + (n * 104729) % 10000 + CASE WHEN n % 50 = 0 THEN 100000 ELSE 0 END)::integer AS amount
    FROM generate_series(1, $2::bigint) AS n) AS made
""",
    ),
    # One row for each completed or reversed payment, 6 % of C2B and 1 % of money out, both without a subject.
    (
        "transaction",
        """
INSERT INTO transaction (transaction_id, receiver_id, merchant_id, occurred_at, amount_cents, subject_id, env,
    direction, kind, receipt, payer, payer_digest, account_number, subject_kind, first_source, category)
SELECT ID[txn], receiver_id, $1::uuid, AT, amount_cents, CASE WHEN is_paid THEN ID[pay] END, 'sandbox',
    CASE WHEN n % 100 = 99 THEN 'out' ELSE 'in' END, CASE WHEN n % 100 = 99 THEN 'Business Payment' END,
    'S' || upper(lpad(to_hex(n), 9, '0')),
    CASE WHEN n % 100 = 90 THEN '2547*****149' ELSE '2547' || lpad(((n * 7919) % 200000)::text, 8, '0') END,
    CASE WHEN n % 100 = 91 THEN encode(sha256(('2547' || lpad(((n * 7919) % 200000)::text, 8, '0'))::bytea), 'hex') END,
    CASE WHEN NOT is_paid AND n % 100 < 99 THEN 'ORDER' || n % 5000 END, CASE WHEN is_paid THEN 'payment' END,
    CASE WHEN is_paid THEN 'stk' ELSE 'c2b' END,
    CASE WHEN is_paid THEN 'stk' WHEN n % 100 = 99 THEN 'b2c' ELSE 'c2b' END
FROM (SELECT n, n % 100 < 80 OR n % 100 BETWEEN 95 AND 97 AS is_paid,
    (1 + (n * 104729) % 10000 + CASE WHEN n % 50 = 0 THEN 100000 ELSE 0 END) * 100 AS amount_cents
    FROM generate_series(1, $2::bigint) AS n) AS made,
    (SELECT receiver_id FROM shortcode WHERE merchant_id = $1 ORDER BY shortcode_id LIMIT 1) AS shop
WHERE n % 100 < 80 OR n % 100 >= 90
""",
    ),
    (
        "idempotency_key",
        """
INSERT INTO idempotency_key (merchant_id, env, digest, operation, fingerprint, state, subject_id, leased_until,
    created_at)
SELECT $1, 'sandbox', key_digest($1, 'sandbox', 'seed-' || n), 'payment', substr(sha256(n::text::bytea), 1, 16),
    'settled', ID[pay], AT, AT
FROM generate_series(1, $2::bigint) AS n
""",
    ),
    (
        "callback",
        """
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, env, subject_id, handle, result_code,
    stored_body, verdict, applied_at, merchant_id)
SELECT ID[cbk], 'stk', substr(sha256(('c' || n)::bytea), 1, 16), AT, '127.0.0.1', 'sandbox', ID[pay], 'ws_CO_seed' || n,
    '0', repeat('x', 400), 'applied', AT, $1
FROM generate_series(1, $2::bigint) AS n
""",
    ),
    (
        "event",
        """
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, stored_body)
SELECT ID[evt], CASE WHEN n % 100 < 82 THEN 'payment.completed' ELSE 'payment.failed' END, $1, 'sandbox', ID[pay],
    AT, true, NULL, repeat('x', 700)
FROM generate_series(1, $2::bigint) AS n
""",
    ),
    (
        "delivery",
        """
INSERT INTO delivery (delivery_id, event_id, endpoint_id, merchant_id, env, event_type, payment_id, status, attempts,
    last_attempt_at, last_status, created_at, delivered_at, address_id, ms, answer)
SELECT ID[dlv], ID[evt], endpoint_id, $1, env, 'payment.completed', ID[pay], 'delivered', 1, AT, 200, AT, AT,
    address_id, 12, 'ok'
FROM generate_series(1, $2::bigint) AS n, webhook_endpoint WHERE webhook_endpoint.merchant_id = $1
""",
    ),
)

# $1 merchant, $2 the ids' common part in hexadecimal, $3 number: payments with a push acknowledged a moment ago.
SEED_PENDING = """
WITH made AS (
    INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
        reference_is_ours, description, metadata, idempotency_key, charge, merchant_request_id, checkout_request_id,
        due_at, expires_at, created_at, updated_at, accepted_at)
    SELECT ($2 || lpad(n::text, 8, '0'))::uuid, $1, 'sandbox', 'mpesa', '174379',
        (SELECT shortcode_id FROM shortcode WHERE merchant_id = $1 ORDER BY shortcode_id LIMIT 1), 500, 'KES',
        '254708374149', 'R' || n, false, 'Payment', '{}', $2 || n, 'accepted', 'm-' || $2 || n, 'ws_CO_' || $2 || n,
        now() + interval '1 day',
        now() + interval '1 day', now(), now(), now()
    FROM generate_series(1, $3::bigint) AS n
    RETURNING payment_id, merchant_id, env, idempotency_key, created_at
)
INSERT INTO idempotency_key (merchant_id, env, digest, operation, fingerprint, state, subject_id, leased_until,
    created_at)
SELECT merchant_id, env, key_digest(merchant_id, env, idempotency_key), 'payment',
    substr(sha256(uuid_send(payment_id)), 1, 16), 'settled', payment_id, created_at, created_at
FROM made
"""

PEER_PENDING = """
INSERT INTO payment (id, idempotency_key, amount, phone, status, checkout_request_id, result_desc, created_at,
    updated_at)
SELECT gen_random_uuid(), $1 || n, 500, '254708374149', 'pending', 'ws_CO_' || $1 || n, '', now(), now()
FROM generate_series(1, $2::bigint) AS n
"""

PEER_SEED = """
INSERT INTO payment (id, idempotency_key, amount, phone, status, checkout_request_id, receipt, result_desc, created_at,
    updated_at)
SELECT gen_random_uuid(), 'seed-' || n, 500, '2547' || lpad(n::text, 8, '0'), 'completed', 'ws_CO_seed' || n, 'S' || n,
    '', now() - interval '1 year' + n * interval '30 seconds', now() FROM generate_series(1, $1::bigint) AS n
"""


@dataclass(frozen=True)
class Shop:
    """The measured merchant."""

    merchant_id: str
    key: str
    callback_secret: str
    """The key of callback tokens, in hexadecimal."""


async def connect(url: str, schema: str | None = None) -> Any:
    """Return a connection for seeding, with ids as text and without synchronous commit."""
    settings = {"search_path": schema} if schema else {}
    settings |= {"synchronous_commit": "off", "timezone": "UTC"}
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url, server_settings=settings)
    await read_ids(connection)
    return connection


async def create_database(url: str, name: str) -> bool:
    """Create a database if missing; returns True if it was created."""
    connection = await connect(url)
    try:
        if await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            return False
        await connection.execute(f'CREATE DATABASE "{name}"')
        return True
    finally:
        await connection.close()


async def open_shop(values: dict[str, Any], webhook_url: str) -> Shop:
    """Create a merchant with credentials in a gateway with these settings, after its migrations."""
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        merchant = await gateway.merchants.create("Bench", actor=_ACTOR)
        _, key = await gateway.api_keys.create(
            merchant.merchant_id, name="bench", scopes=gateway.scopes.of_merchants, env="sandbox", actor=_ACTOR
        )
        found = await gateway.api_keys.authenticate(key.reveal())
        await _configure(gateway, found, webhook_url)
        return Shop(merchant.merchant_id, key.reveal(), gateway.vault.secret(CALLBACK_TOKENS).hex())


async def _configure(gateway: Gateway, caller: Caller, webhook_url: str) -> None:
    provider = msgspec.convert(INITIATED, SetProvider)
    await gateway.services.get(CredentialStore).store(caller, provider)
    await gateway.services.get(EndpointService).set_url(caller, webhook_url)


async def seed_gateway(url: str, merchant_id: str, payments: int) -> None:
    """Insert this many finished payments of one merchant, with their transactions, keys, callbacks and deliveries."""
    connection = await connect(url, "mpesa")
    try:
        # The rows are consistent by construction; checking each foreign key would take most of the time.
        await connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '512MB'")
        start = datetime.now(UTC) - timedelta(days=365)
        for table, sql in _SEED:
            plain = await connection.fetch(
                "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'mpesa' AND tablename = $1 "
                "AND indexname NOT IN (SELECT conname FROM pg_constraint)",
                table,
            )
            for row in plain:
                await connection.execute(f"DROP INDEX {row['indexname']}")
            await connection.execute(_spelt(sql, start), merchant_id, payments)
            for row in plain:
                await connection.execute(row["indexdef"])
            await connection.execute(f"VACUUM (FREEZE, ANALYZE) {table}")
    finally:
        await connection.close()


async def seed_plain(url: str, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
    """Run statements of a contestant's own."""
    connection = await connect(url)
    try:
        for sql, values in statements:
            await connection.execute(sql, *values)
        await connection.execute("VACUUM (FREEZE, ANALYZE) payment")
    finally:
        await connection.close()


def id_stem() -> str:
    """Return a common part of the payments' ids, unique to a round: 24 of a UUID's 32 digits."""
    return f"{time.time_ns() // 1_000_000:012x}{tag('pay')}{secrets.token_hex(4)}"


def nth_id(stem: str, number: int) -> str:
    """Return the id for ``number``, of eight digits, and a stem."""
    return id_of(bytes.fromhex(f"{stem}{number:08}"))
