"""The tables of deliveries and attempts, and the queries on them."""

from piccolo.columns import Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.event_bodies import TEMPLATE
from mpesa_gateway.db.keyset import KeysetList

DELIVERIES = KeysetList(table="delivery", key="delivery_id", prefix="dlv")


class DeliveryRow(Table, tablename="delivery"):
    """The delivery of one event to one endpoint, or waiting for one."""

    delivery_id = Text(primary_key=True)
    event_id = Text()
    endpoint_id = Text(null=True, default=None)
    merchant_id = Text()
    env = Text()
    event_type = Text()
    payment_id = Text()
    status = Text()
    attempts = Integer()
    tried = Integer()
    due_at = Timestamptz(null=True, default=None)
    leased_until = Timestamptz(null=True, default=None)
    last_attempt_at = Timestamptz(null=True, default=None)
    last_status = Integer(null=True, default=None)
    last_error = Text(null=True, default=None)
    created_at = Timestamptz()
    delivered_at = Timestamptz(null=True, default=None)
    address_id = Integer(null=True, default=None)
    ms = Integer(null=True, default=None)
    answer = Text(null=True, default=None)


class AttemptRow(Table, tablename="attempt"):
    """An HTTP attempt with a row of its own."""

    attempt_id = Text(primary_key=True)
    delivery_id = Text()
    at = Timestamptz()
    address_id = Integer()
    status = Integer(null=True, default=None)
    ms = Integer(null=True, default=None)
    error = Text(null=True, default=None)
    answer = Text()


# raw SQL: hot path - each delivery is created, claimed, attempted and completed by these statements.
# raw SQL: lock - sweeps lock the deliveries they change.
# raw SQL: join - a delivery with its endpoint, its event and its merchant.
# raw SQL: array - the deliveries of a list of events, payments or ids.
# raw SQL: aggregate - counts for operators, up to a limit.

# ``LIMIT cardinality($1)`` removes no row, and lets Postgres keep the plan: see ADR 35.
FAN_OUT = """
INSERT INTO delivery (delivery_id, event_id, endpoint_id, merchant_id, env, event_type, payment_id, status, due_at,
    created_at, last_error)
SELECT delivery_id, event_id, endpoint_id, made.merchant_id, made.env, event_type, payment_id,
    CASE WHEN endpoint_id IS NULL THEN 'waiting' WHEN event_type <> ALL(event_types) THEN 'cancelled'
        ELSE 'pending' END,
    CASE WHEN endpoint_id IS NOT NULL AND (event_type = ANY(event_types)) IS NOT FALSE THEN at END, at,
    CASE WHEN event_type <> ALL(event_types) THEN 'not one of the endpoint''s event types' END
FROM (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::timestamptz[])
        AS t(delivery_id, event_id, merchant_id, env, event_type, payment_id, at)
    LIMIT cardinality($1)
) AS made LEFT JOIN webhook_endpoint ON webhook_endpoint.merchant_id = made.merchant_id
    AND webhook_endpoint.env = made.env AND is_active
ORDER BY event_id, endpoint_id
RETURNING CASE WHEN status = 'pending' THEN delivery_id END
"""
"""Returns the ids of pending deliveries, and NULL for each waiting one."""

_CLAIM = """
UPDATE delivery SET leased_until = $3, tried = tried + 1
FROM webhook_endpoint, event, merchant
WHERE delivery_id IN (
        SELECT delivery_id FROM {} AND status = 'pending' AND due_at <= $2
            AND (leased_until IS NULL OR leased_until < $2)
        {} FOR UPDATE OF delivery SKIP LOCKED
    )
    AND webhook_endpoint.endpoint_id = delivery.endpoint_id AND event.event_id = delivery.event_id
    AND merchant.merchant_id = delivery.merchant_id
RETURNING delivery_id, delivery.event_id, delivery.endpoint_id, delivery.merchant_id, delivery.event_type,
    delivery.payment_id, delivery.attempts, event.stored_body, event.subject_id, event.occurred_at, {template},
    webhook_endpoint.url, webhook_endpoint.secret, webhook_endpoint.previous_secret,
    webhook_endpoint.previous_until, webhook_endpoint.is_active, webhook_endpoint.address_id, webhook_endpoint.failures,
    webhook_endpoint.closed_until, delivery.env, merchant.is_active AS merchant_is_active
"""

CLAIM = _CLAIM.format(
    "(SELECT unnest($1::uuid[]) AS delivery_id LIMIT cardinality($1)) AS these JOIN delivery USING (delivery_id)"
    " WHERE endpoint_id <> ALL($4::uuid[])",
    "",
    template=TEMPLATE,
)

CLAIM_OF_ENDPOINT = _CLAIM.format("delivery WHERE endpoint_id = $1", "ORDER BY due_at LIMIT $4", template=TEMPLATE)

RELEASE = """
UPDATE delivery SET leased_until = NULL
FROM (
    SELECT id FROM (
        SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS t(id, until) LIMIT cardinality($1)
    ) AS t JOIN delivery ON delivery_id = id
    WHERE status = 'pending' AND leased_until = until ORDER BY delivery_id FOR UPDATE OF delivery
) AS back WHERE delivery_id = id
"""

DUE = """
WITH RECURSIVE owed AS (
    -- Steps along the index from endpoint to endpoint, so that a long backlog of one is not read.
    (SELECT endpoint_id FROM delivery WHERE status = 'pending' ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT delivery.endpoint_id FROM delivery
        WHERE status = 'pending' AND delivery.endpoint_id > owed.endpoint_id ORDER BY delivery.endpoint_id LIMIT 1)
    FROM owed WHERE owed.endpoint_id IS NOT NULL
)
SELECT due.delivery_id FROM owed JOIN webhook_endpoint USING (endpoint_id) CROSS JOIN LATERAL (
    SELECT delivery_id, due_at, row_number() OVER (ORDER BY due_at) AS turn FROM delivery
    WHERE delivery.endpoint_id = owed.endpoint_id AND status = 'pending' AND due_at <= $1
        AND (leased_until IS NULL OR leased_until < $1)
    ORDER BY due_at LIMIT $3
) AS due
WHERE closed_until IS NULL OR closed_until <= $1
ORDER BY due.turn, due.due_at LIMIT $2
"""

RECORD_ATTEMPT = """
INSERT INTO attempt (attempt_id, delivery_id, at, status, ms, error, answer, address_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

DELIVERED = """
WITH taken AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::integer[], $5::text[], $8::integer[])
        AS t(attempt_id, id, status, ms, answer, address_id)
    LIMIT cardinality($1)
), delivered AS (
    UPDATE delivery SET status = 'delivered', attempts = attempts + 1, due_at = NULL, leased_until = NULL,
        last_attempt_at = $6::timestamptz, last_status = locked.status, last_error = NULL,
        delivered_at = $6::timestamptz, address_id = CASE WHEN is_first THEN locked.address_id END,
        ms = CASE WHEN is_first THEN locked.ms END,
        answer = CASE WHEN is_first THEN NULLIF(locked.answer, '') END
    FROM (
        SELECT taken.*, last_attempt_at IS NULL AND created_at > $7 AS is_first
        FROM taken JOIN delivery ON delivery_id = id
        WHERE delivery.status = 'pending' ORDER BY delivery_id FOR UPDATE OF delivery
    ) AS locked WHERE delivery_id = locked.id
    RETURNING delivery_id, delivery.ms
)
INSERT INTO attempt (attempt_id, delivery_id, at, status, ms, answer, address_id)
SELECT attempt_id, id, $6::timestamptz, status, taken.ms, answer, address_id FROM taken
WHERE id NOT IN (SELECT delivery_id FROM delivered WHERE delivered.ms IS NOT NULL) ORDER BY attempt_id
"""
"""Stores the attempt in its delivery if it is the first one and the delivery was created after ``$7``.

Statements on many deliveries lock them in the order of their ids, to avoid deadlocks.
"""

FAILED = """
UPDATE delivery SET status = CASE WHEN $5::timestamptz IS NULL AND is_current THEN 'dead' ELSE 'pending' END,
    attempts = attempts + CASE WHEN is_current THEN 1 ELSE 0 END,
    due_at = CASE WHEN is_current THEN $5::timestamptz ELSE $2::timestamptz END,
    leased_until = NULL, last_attempt_at = $2, last_status = $3, last_error = $4
FROM (SELECT is_active AND address_id = $7 AS is_current FROM webhook_endpoint WHERE endpoint_id = $6) AS endpoint
WHERE delivery_id = $1 AND status = 'pending'
"""
"""An attempt at a replaced or removed address does not count: the new address is tried at once."""

DEFER = """
UPDATE delivery SET due_at = GREATEST(due_at, until), leased_until = NULL
FROM (
    SELECT id, until FROM (
        SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS t(id, until) LIMIT cardinality($1)
    ) AS t JOIN delivery ON delivery_id = id
    WHERE status = 'pending' ORDER BY delivery_id FOR UPDATE OF delivery
) AS later WHERE delivery_id = id
"""

MAKE_WAIT = """
UPDATE delivery SET status = 'waiting', due_at = NULL, leased_until = NULL
WHERE delivery_id IN (
    SELECT delivery_id FROM delivery WHERE delivery_id = ANY($1::uuid[]) AND status = 'pending'
    ORDER BY delivery_id FOR UPDATE
)
"""

UNASSIGN_REMOVED = """
WITH RECURSIVE owed AS (
    -- Along the index, as in DUE.
    (SELECT endpoint_id FROM delivery WHERE status = 'pending' ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT delivery.endpoint_id FROM delivery
        WHERE status = 'pending' AND delivery.endpoint_id > owed.endpoint_id ORDER BY delivery.endpoint_id LIMIT 1)
    FROM owed WHERE owed.endpoint_id IS NOT NULL
)
UPDATE delivery SET status = 'waiting', due_at = NULL, leased_until = NULL
WHERE delivery_id = ANY(ARRAY(
    SELECT orphans.delivery_id FROM owed JOIN webhook_endpoint USING (endpoint_id) CROSS JOIN LATERAL (
        SELECT delivery_id FROM delivery
        WHERE delivery.endpoint_id = owed.endpoint_id AND status = 'pending'
            AND (leased_until IS NULL OR leased_until < $1)
        ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ) AS orphans
    WHERE NOT is_active LIMIT $2
))
RETURNING delivery_id
"""
"""Pending deliveries of removed endpoints wait for the next one."""

ASSIGN_WAITING = """
WITH RECURSIVE owner AS (
    (SELECT merchant_id, env FROM delivery WHERE status = 'waiting' ORDER BY merchant_id, env LIMIT 1)
    UNION ALL
    SELECT following.merchant_id, following.env FROM owner CROSS JOIN LATERAL (
        SELECT delivery.merchant_id, delivery.env FROM delivery
        WHERE status = 'waiting' AND (delivery.merchant_id, delivery.env) > (owner.merchant_id, owner.env)
        ORDER BY delivery.merchant_id, delivery.env LIMIT 1
    ) AS following
), adopted AS (
    SELECT waiting.delivery_id, webhook_endpoint.endpoint_id,
        CASE WHEN waiting.created_at < $2 THEN 'dead' ELSE 'pending' END AS becomes
    FROM owner JOIN webhook_endpoint ON webhook_endpoint.merchant_id = owner.merchant_id
        AND webhook_endpoint.env = owner.env AND is_active
    CROSS JOIN LATERAL (
        SELECT delivery_id, created_at FROM delivery
        WHERE delivery.merchant_id = owner.merchant_id AND delivery.env = owner.env AND status = 'waiting'
        ORDER BY delivery_id LIMIT $3 FOR UPDATE SKIP LOCKED
    ) AS waiting
    LIMIT $3
)
UPDATE delivery SET endpoint_id = adopted.endpoint_id, attempts = 0, status = becomes,
    due_at = CASE WHEN becomes = 'pending' THEN $1::timestamptz END,
    last_error = CASE becomes WHEN 'pending' THEN last_error ELSE 'no webhook was set in time' END
FROM adopted WHERE delivery.delivery_id = adopted.delivery_id AND status = 'waiting'
RETURNING delivery.delivery_id, status
"""
"""Assigns waiting deliveries to the active endpoint of their merchant and env; those from before $2 are dead.

The endpoint's event types do not matter: the event is older than the choice, or was replayed.
"""

CANCEL = """
UPDATE delivery SET status = 'cancelled', due_at = NULL, leased_until = NULL
WHERE delivery_id IN (
    SELECT delivery_id FROM delivery WHERE delivery_id = ANY($1::uuid[]) AND status = 'pending'
    ORDER BY delivery_id FOR UPDATE
)
"""


# The lock returns the newest version of a row, with an attempt that a concurrent process stored in it.
_REPLAY = """
WITH chosen AS MATERIALIZED (
    SELECT delivery_id, last_attempt_at, last_status, delivery.address_id, ms, answer, webhook_endpoint.endpoint_id
    FROM delivery JOIN webhook_endpoint ON webhook_endpoint.merchant_id = delivery.merchant_id
        AND webhook_endpoint.env = delivery.env AND is_active
    WHERE delivery.merchant_id = $1 AND delivery.env = $2 AND {} FOR UPDATE OF delivery
), kept AS (
    INSERT INTO attempt (attempt_id, delivery_id, at, status, address_id, ms, answer)
    SELECT attempt_id_of(delivery_id, last_attempt_at), delivery_id, last_attempt_at, last_status, address_id, ms,
        COALESCE(answer, '') FROM chosen WHERE ms IS NOT NULL ORDER BY 1
)
UPDATE delivery SET status = 'pending', attempts = 0, due_at = $3, leased_until = NULL, delivered_at = NULL,
    address_id = NULL, ms = NULL, answer = NULL, last_error = NULL, endpoint_id = chosen.endpoint_id
FROM chosen WHERE delivery.delivery_id = chosen.delivery_id
RETURNING delivery.*
"""
"""Moves the attempt that a delivery contains to a row of its own, and makes the delivery pending."""

REPLAY_ONE = _REPLAY.format("delivery_id = $4")

REPLAY_MANY = _REPLAY.format(
    "delivery_id >= $4 AND ($5::uuid IS NULL OR delivery_id < $5) AND ($6::text IS NULL OR status = $6)"
    " AND (due_at IS NULL OR due_at > $3) ORDER BY delivery_id LIMIT $7"
)

FORGET_ATTEMPTS = """
DELETE FROM attempt WHERE attempt_id IN (
    SELECT attempt_id FROM attempt WHERE attempt_id < $1 ORDER BY attempt_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FORGET_ANSWERS = """
UPDATE delivery SET answer = NULL WHERE delivery_id IN (
    SELECT delivery_id FROM delivery WHERE answer IS NOT NULL AND delivery_id < $1
    ORDER BY delivery_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

ABOUT = """delivery_id = ANY(ARRAY(
    SELECT owed.delivery_id FROM event JOIN delivery AS owed USING (event_id) WHERE event.subject_id = {}))"""
"""The deliveries of a subject's events, found by the indexes of ``event``: ``delivery`` has none for subjects."""

_OF_CASE = "event_id IN (SELECT event_id FROM event WHERE subject_id = ANY($1::uuid[]))"

DELIVERIES_OF_CASE = f"""
SELECT delivery_id, status, answer FROM delivery WHERE {_OF_CASE} ORDER BY delivery_id FOR UPDATE NOWAIT
"""

ATTEMPTS_OF_CASE = f"""
SELECT attempt_id, attempt.answer FROM attempt JOIN delivery USING (delivery_id) WHERE {_OF_CASE}
FOR UPDATE OF attempt NOWAIT
"""

EVENTS_SINCE = """
SELECT event_id, kind, occurred_at, event.body FROM event
WHERE merchant_id = $1 AND env = $6 AND is_public AND event_id >= $2 AND kind = ANY($3::text[])
    AND event_id <> ALL($4::uuid[])
ORDER BY event_id LIMIT $5
"""


CAN_REPLAY = """EXISTS (SELECT 1 FROM webhook_endpoint AS active WHERE active.merchant_id = delivery.merchant_id
        AND active.env = delivery.env AND active.is_active) AS can_replay"""

SENT_TO = """COALESCE(CASE WHEN delivery.status = 'delivered' THEN (
        SELECT webhook_address.url FROM attempt_log JOIN webhook_address USING (address_id)
        WHERE attempt_log.delivery_id = delivery.delivery_id ORDER BY attempt_id DESC LIMIT 1
    ) END, webhook_endpoint.url) AS url"""
"""The address that accepted a delivery, or the next one."""

FIND_ANY = f"""
SELECT delivery.*, {SENT_TO}, {CAN_REPLAY}, event.body, merchant.name
FROM delivery LEFT JOIN webhook_endpoint USING (endpoint_id) JOIN event USING (event_id)
    JOIN merchant ON merchant.merchant_id = delivery.merchant_id
WHERE delivery_id = $1
"""

OF_PAYMENT = f"""
SELECT delivery.*, {SENT_TO}, {CAN_REPLAY}
FROM delivery LEFT JOIN webhook_endpoint USING (endpoint_id)
WHERE {ABOUT.format("$1")} ORDER BY delivery_id DESC LIMIT 50
"""

OF_EVENT = f"""
SELECT delivery.*, {SENT_TO}, {CAN_REPLAY}
FROM delivery LEFT JOIN webhook_endpoint USING (endpoint_id) WHERE event_id = $1 LIMIT 50
"""

ATTEMPTS_OF_DELIVERY = """
SELECT attempt_id AS id, at, url, status, ms, error, answer
FROM attempt_log JOIN webhook_address USING (address_id) WHERE delivery_id = $1 ORDER BY attempt_id
"""

ATTEMPTS_OF_PAYMENT = f"""
SELECT attempt_log.*, delivery.event_type, delivery.event_id, webhook_address.url, event.body
FROM (SELECT * FROM delivery WHERE {ABOUT.format("$1")} ORDER BY delivery_id DESC LIMIT 50) AS delivery
    JOIN attempt_log USING (delivery_id) JOIN webhook_address ON webhook_address.address_id = attempt_log.address_id
    JOIN event ON event.event_id = delivery.event_id
ORDER BY attempt_id LIMIT 100
"""

EXAMINE = """
SELECT endpoint_id, url, failures, closed_until, last_success_at, event_types,
    (SELECT count(*) FROM (SELECT 1 FROM delivery
        WHERE delivery.merchant_id = $1 AND delivery.env = $4 AND status = 'cancelled' AND event_type = ANY($5::text[])
            AND delivery.delivery_id >= $2 LIMIT 1000) AS unsent) AS cancelled,
    (SELECT count(*) FROM delivery WHERE delivery.merchant_id = $1 AND delivery.env = $4 AND status = 'dead'
        AND delivery.delivery_id >= $2) AS dead,
    (SELECT count(*) FROM delivery WHERE delivery.merchant_id = $1 AND delivery.env = $4 AND status = 'pending'
        AND due_at <= $3) AS owed,
    (SELECT last_error FROM delivery WHERE delivery.endpoint_id = webhook_endpoint.endpoint_id AND status = 'pending'
        AND last_error IS NOT NULL ORDER BY due_at DESC LIMIT 1) AS last_error
FROM webhook_endpoint WHERE merchant_id = $1 AND env = $4 AND is_active
"""

EXAMINE_WAITING = """
SELECT count(*) FROM (SELECT 1 FROM delivery
    WHERE merchant_id = $1 AND env = $2 AND status = 'waiting' AND delivery_id >= $3 LIMIT 1000) AS waiting
"""
