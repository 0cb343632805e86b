"""Table and queries of endpoints."""

from piccolo.columns import Array, Boolean, Integer, Text, Timestamptz
from piccolo.columns.combination import Where
from piccolo.table import Table

from mpesa_gateway.db.keyset import KeysetList
from mpesa_gateway.env import Env


class EndpointRow(Table, tablename="webhook_endpoint"):
    """A merchant's endpoint."""

    endpoint_id = Text(primary_key=True)
    address_id = Integer()
    merchant_id = Text()
    env = Text()
    url = Text()
    secret = Text()
    previous_secret = Text(null=True, default=None)
    previous_until = Timestamptz(null=True, default=None)
    is_active = Boolean()
    failures = Integer()
    closed_until = Timestamptz(null=True, default=None)
    last_success_at = Timestamptz(null=True, default=None)
    last_failure_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    updated_at = Timestamptz()
    event_types = Array(base_column=Text(), null=True, default=None)


def active_of(merchant_id: str, env: Env) -> tuple[Where, ...]:
    return (
        EndpointRow.merchant_id == merchant_id,
        EndpointRow.env == env,
        EndpointRow.is_active.eq(value=True),
    )


# raw SQL: hot path - each attempt updates its endpoint.
# raw SQL: upsert - the active endpoint of a merchant and env, found by a partial index.
# raw SQL: aggregate - an endpoint's deliveries, counted up to a limit.

RECORD_SUCCESSES = """
UPDATE webhook_endpoint SET failures = 0, closed_until = NULL, last_success_at = $2::timestamptz
WHERE endpoint_id IN (
    SELECT endpoint_id FROM webhook_endpoint
    -- A success at a replaced address does not count for the new one.
    WHERE address_id = ANY($1::integer[])
        AND (failures > 0 OR last_success_at IS NULL OR last_success_at < $2::timestamptz - interval '10 seconds')
    -- A fixed order, so that two processes with the same endpoints cannot deadlock.
    ORDER BY endpoint_id FOR UPDATE
)
"""

RECORD_FAILURE = """
UPDATE webhook_endpoint SET failures = failures + 1, last_failure_at = $2,
    closed_until = CASE WHEN failures + 1 >= $3 THEN $4::timestamptz ELSE closed_until END
WHERE address_id = $1
"""

SET_ENDPOINT = """
INSERT INTO webhook_endpoint (endpoint_id, merchant_id, env, url, secret, created_at, updated_at, event_types)
VALUES ($1, $2, $7, $3, $4, $5, $5, $8)
ON CONFLICT (merchant_id, env) WHERE is_active DO UPDATE SET url = excluded.url, secret = excluded.secret,
    previous_secret = webhook_endpoint.secret, previous_until = $6, failures = 0, closed_until = NULL,
    updated_at = excluded.updated_at, event_types = excluded.event_types
RETURNING endpoint_id
"""

COUNT_WITHOUT = """
SELECT count(*) FROM webhook_endpoint JOIN merchant USING (merchant_id)
WHERE webhook_endpoint.is_active AND env = $1 AND merchant.is_active AND NOT event_types @> $2::text[]
    AND ($3::uuid IS NULL OR merchant_id = $3)
"""

_ENDPOINTS = """
SELECT webhook_endpoint.*, merchant.name,
    (SELECT count(*) FROM (SELECT 1 FROM delivery
        WHERE delivery.endpoint_id = webhook_endpoint.endpoint_id AND status = 'pending' LIMIT 1000) AS owed) AS owed,
    (SELECT min(created_at) FROM (SELECT created_at FROM delivery
        WHERE delivery.endpoint_id = webhook_endpoint.endpoint_id AND status = 'pending'
        ORDER BY due_at LIMIT 1000) AS oldest) AS oldest,
    (SELECT count(*) FROM (SELECT 1 FROM delivery
        WHERE delivery.merchant_id = webhook_endpoint.merchant_id AND delivery.env = webhook_endpoint.env
            AND status = 'dead' AND delivery_id >= $1
        LIMIT 1000) AS lost) AS dead
FROM webhook_endpoint JOIN merchant USING (merchant_id)
"""

ENDPOINTS = KeysetList(table="webhook_endpoint", key="endpoint_id", prefix="whe", of_merchants=False)

HEALTH = f"{_ENDPOINTS} WHERE endpoint_id = ANY($2::uuid[])"

ENDPOINT_OF_MERCHANT = f"""{_ENDPOINTS}
WHERE webhook_endpoint.merchant_id = $2 AND webhook_endpoint.env = $3 AND webhook_endpoint.is_active
"""
