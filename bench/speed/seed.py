"""Puts payments into the databases by SQL, each with all that a finished payment leaves: a million in two minutes."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway.testing.serving import INITIATED
from mpesa_gateway_credentials.schemas import SetProvider
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_webhooks.endpoints import Endpoints

_ACTOR = "cli:bench"

# What stands for it in the statements below. An id has 26 characters that sort by time, as our ids do, and two noughts
# before everything that the gateway itself makes.
_MEANINGS = {
    "ID[": "'",
    "]ID": "_00' || lpad(to_hex(1700000000000 + n * 31536), 11, '0') || lpad(to_hex(n), 13, '0')",
    "AT": "now() - interval '365 days' + n * (interval '365 days' / $2::bigint)",
}


def _spelt(sql: str) -> str:
    for short, long in _MEANINGS.items():
        sql = sql.replace(short, long)
    return sql


# $1 merchant, $2 how many.
_SEED: Sequence[tuple[str, str]] = (
    (
        "payment",
        """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, metadata, idempotency_key, status, charge, merchant_request_id, checkout_request_id,
    receipt, result_code, result_desc, failure_reason, refunded, due_at, expires_at, created_at, updated_at,
    completed_at)
SELECT ID[pay]ID, $1::text, 'sandbox', 'mpesa', '174379',
    (SELECT min(shortcode_id) FROM shortcode WHERE merchant_id = $1), amount, 'KES',
    '2547' || lpad(((n * 7919) % 200000)::text, 8, '0'),
    CASE WHEN n % 10 < 7 THEN upper(lpad(to_hex(n), 12, 'X')) ELSE 'ORDER' || n % 50000 END, n % 10 < 7, 'Payment',
    jsonb_build_object('order', n::text), 'seed-' || n, status, 'accepted', 'm-seed-' || n, 'ws_CO_seed' || n,
    CASE WHEN status IN ('completed', 'reversed') THEN 'S' || upper(lpad(to_hex(n), 9, '0')) END,
    CASE status WHEN 'pending' THEN NULL WHEN 'failed' THEN '1032' ELSE '0' END,
    CASE status WHEN 'pending' THEN NULL WHEN 'failed' THEN 'Request cancelled by user' ELSE 'Processed' END,
    CASE WHEN status = 'failed' THEN 'cancelled_by_user' END,
    CASE WHEN status = 'reversed' THEN amount ELSE 0 END,
    CASE WHEN status = 'pending' THEN now() + interval '10 years' END, at, at, at,
    CASE WHEN status IN ('completed', 'reversed') THEN at + interval '20 seconds' END
FROM (SELECT n, AT AS at, CASE WHEN n % 100 < 80 THEN 'completed' WHEN n % 100 < 95 THEN 'failed'
        WHEN n % 100 < 98 THEN 'reversed' ELSE 'pending' END AS status,
    (1 + (n * 104729) % 10000 + CASE WHEN n % 50 = 0 THEN 100000 ELSE 0 END)::integer AS amount
    FROM generate_series(1, $2::bigint) AS n) AS made
""",
    ),
    (
        "idempotency_key",
        """
INSERT INTO idempotency_key (merchant_id, env, key, operation, fingerprint, state, subject_id, leased_until, created_at)
SELECT $1, 'sandbox', 'seed-' || n, 'payment', sha256(n::text::bytea), 'settled', ID[pay]ID, AT, AT
FROM generate_series(1, $2::bigint) AS n
""",
    ),
    (
        "callback",
        """
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, env, subject_id, handle, result_code, body,
    verdict, applied_at, merchant_id)
SELECT ID[cbk]ID, 'stk', sha256(('c' || n)::bytea), AT, '127.0.0.1', 'sandbox', ID[pay]ID, 'ws_CO_seed' || n,
    '0', repeat('x', 400), 'applied', AT, $1
FROM generate_series(1, $2::bigint) AS n
""",
    ),
    (
        "event",
        """
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body)
SELECT ID[evt]ID, CASE WHEN n % 100 < 82 THEN 'payment.completed' ELSE 'payment.failed' END, $1, 'sandbox', ID[pay]ID,
    AT, true, '{"seeded": true}', repeat('x', 400)
FROM generate_series(1, $2::bigint) AS n
""",
    ),
    (
        "delivery",
        """
INSERT INTO delivery (delivery_id, event_id, endpoint_id, merchant_id, env, event_type, payment_id, status, attempts,
    created_at, delivered_at)
SELECT ID[dlv]ID, ID[evt]ID, endpoint_id, $1, env, 'payment.completed', ID[pay]ID, 'delivered', 1, AT, AT
FROM generate_series(1, $2::bigint) AS n, webhook_endpoint WHERE webhook_endpoint.merchant_id = $1
""",
    ),
    (
        "attempt",
        """
INSERT INTO attempt (attempt_id, delivery_id, at, status, ms, error, answer)
SELECT ID[att]ID, ID[dlv]ID, AT, 200, 12, NULL, 'ok' FROM generate_series(1, $2::bigint) AS n
WHERE $1::text IS NOT NULL
""",
    ),
)

# $1 merchant, $2 the ids' common part, $3 how many: payments whose push Daraja has taken a moment ago.
SEED_PENDING = """
WITH made AS (
    INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
        reference_is_ours, description, metadata, idempotency_key, charge, merchant_request_id, checkout_request_id,
        due_at, expires_at, created_at, updated_at)
    SELECT $2 || lpad(n::text, 8, '0'), $1, 'sandbox', 'mpesa', '174379',
    (SELECT min(shortcode_id) FROM shortcode WHERE merchant_id = $1), 500, 'KES', '254708374149', 'R' || n, false,
        'Payment', '{}', $2 || n, 'accepted', 'm-' || $2 || n, 'ws_CO_' || $2 || n, now() + interval '1 day',
        now() + interval '1 day', now(), now()
    FROM generate_series(1, $3::bigint) AS n
    RETURNING payment_id, merchant_id, env, idempotency_key, created_at
)
INSERT INTO idempotency_key (merchant_id, env, key, operation, fingerprint, state, subject_id, leased_until, created_at)
SELECT merchant_id, env, idempotency_key, 'payment', sha256(payment_id::bytea), 'settled', payment_id, created_at,
    created_at
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
    """The merchant that is measured."""

    merchant_id: str
    key: str
    callback_secret: str
    """What callback tokens are made with, in hexadecimal."""


async def connect(url: str, schema: str | None = None) -> Any:
    """A connection for seeding: what it writes need not survive a crash at once."""
    settings = {"search_path": schema} if schema else {}
    return await asyncpg.connect(url, server_settings=settings | {"synchronous_commit": "off", "timezone": "UTC"})


async def create_database(url: str, name: str) -> bool:
    """Make a database where there is none; gives whether it was made."""
    connection = await connect(url)
    try:
        if await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            return False
        await connection.execute(f'CREATE DATABASE "{name}"')
        return True
    finally:
        await connection.close()


async def open_shop(values: dict[str, Any], webhook_url: str) -> Shop:
    """A merchant that is ready to sell, in a gateway of these settings, which is migrated for it."""
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
    await gateway.services.get(Endpoints).set_url(caller, webhook_url)


async def seed_gateway(url: str, merchant_id: str, payments: int) -> None:
    """That many finished payments of one merchant, with their keys, callbacks, events and deliveries."""
    connection = await connect(url, "mpesa")
    try:
        # The rows are right by construction; checking each against its parents would take most of the time.
        await connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '512MB'")
        for table, sql in _SEED:
            plain = await connection.fetch(
                "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'mpesa' AND tablename = $1 "
                "AND indexname NOT IN (SELECT conname FROM pg_constraint)",
                table,
            )
            for row in plain:
                await connection.execute(f"DROP INDEX {row['indexname']}")
            await connection.execute(_spelt(sql), merchant_id, payments)
            for row in plain:
                # Of a table by month Postgres names only the uppermost of its indexes.
                await connection.execute(row["indexdef"].replace(" ON ONLY ", " ON "))
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
    """The common part of the ids of one round, which no other round has: with eight digits behind it, an id."""
    return "pay_02" + secrets.token_hex(8)
