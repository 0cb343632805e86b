"""Tables and queries of the inbox."""

from piccolo.columns import BigInt, Boolean, Bytea, Integer, Text, Timestamptz
from piccolo.querystring import QueryString
from piccolo.table import Table

from mpesa_gateway.db.keyset import KeysetList
from mpesa_gateway.db.named import Named


class CallbackRow(Table, tablename="callback"):
    """An accepted callback."""

    callback_id = Text(primary_key=True)
    kind = Text()
    fingerprint = Bytea()
    received_at = Timestamptz()
    source = Text()
    env = Text(null=True, default=None)
    subject_id = Text()
    handle = Text()
    result_code = Text()
    form_id = Integer(null=True, default=None)
    stored_body = Text()
    repeats = Integer()
    verdict = Text()
    applied_at = Timestamptz(null=True, default=None)
    tries = Integer()
    due_at = Timestamptz(null=True, default=None)
    merchant_id = Text()
    signature = Text()
    body_bytes = Bytea(null=True, default=None)


BODY = QueryString('"callback".body', alias="body")
"""The text as it came."""


class RefusedRow(Table, tablename="refused_callback"):
    """A refused callback; only the newest are kept."""

    refused_id = Text(primary_key=True)
    kind = Text()
    at = Timestamptz()
    source = Text()
    reason = Text()
    body = Text()
    merchant_id = Text(null=True, default=None)
    subject_id = Text(null=True, default=None)
    env = Text(null=True, default=None)
    original = Text(null=True, default=None)
    signature = Text(null=True, default=None)
    replayed_at = Timestamptz(null=True, default=None)
    callback_id = Text(null=True, default=None)
    body_bytes = Bytea(null=True, default=None)
    is_trusted = Boolean()
    cut_length = BigInt(null=True, default=None)
    cut_read = BigInt(null=True, default=None)
    cut_sha256 = Bytea(null=True, default=None)
    was_forwarded = Boolean()


# raw SQL: hot path - each callback runs these statements.
# raw SQL: lock - sweeps, replays, erasures and deletions lock rows.
# raw SQL: aggregate - counts for operators.

KEEP = Named("""
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, env, subject_id, handle, result_code,
    form_id, stored_body, merchant_id, signature, body_bytes, verdict, applied_at, due_at)
SELECT callback_id, kind, fingerprint, $received_at::timestamptz, source, env, subject_id, handle, result_code,
    form.form_id, CASE WHEN form.form_id IS NULL THEN body ELSE body_values END, merchant_id, signature, body_bytes,
    CASE WHEN is_applied THEN 'applied' ELSE 'waiting' END,
    CASE WHEN is_applied THEN $received_at::timestamptz END,
    CASE WHEN NOT is_applied THEN $due_at::timestamptz END
FROM unnest($callback_id::uuid[], $kind::text[], $fingerprint::bytea[], $source::text[], $env::text[],
    $subject_id::uuid[], $handle::text[], $result_code::text[], $body::text[], $merchant_id::uuid[],
    $signature::text[], $is_applied::boolean[], $body_bytes::bytea[], $form_id::integer[],
    $body_values::text[])
    AS t(callback_id, kind, fingerprint, source, env, subject_id, handle, result_code, body, merchant_id, signature,
    is_applied, body_bytes, form_id, body_values)
    LEFT JOIN body_form AS form ON form.form_id = t.form_id
-- A fixed order, so that two processes with the same callbacks cannot deadlock.
ORDER BY fingerprint
ON CONFLICT (fingerprint) DO NOTHING
RETURNING callback_id
""")

LAST_RECEIVED = """
SELECT received_at FROM callback WHERE subject_id = $1 AND kind = $2 ORDER BY callback_id DESC LIMIT 1
"""

REPEATED = """
WITH free AS (
    SELECT callback_id FROM callback WHERE fingerprint = ANY($1::bytea[]) FOR UPDATE SKIP LOCKED
), counted AS (
    UPDATE callback SET repeats = repeats + again.times
    FROM unnest($1::bytea[], $2::integer[]) AS again(fingerprint, times)
    WHERE callback.fingerprint = again.fingerprint AND callback_id IN (SELECT callback_id FROM free)
    RETURNING callback.fingerprint
)
SELECT fingerprint, fingerprint IN (SELECT fingerprint FROM counted) AS is_counted
FROM callback WHERE fingerprint = ANY($1::bytea[])
"""
"""A locked row is a duplicate too, and is counted later.

Returns no fingerprint that Postgres lost in a failover."""

COUNT_REPEATED = """
UPDATE callback SET repeats = repeats + again.times FROM (
    SELECT callback_id, times FROM unnest($1::bytea[], $2::integer[]) AS t(fingerprint, times)
        JOIN callback USING (fingerprint)
    -- A fixed order, so that two processes with the same callbacks cannot deadlock.
    ORDER BY callback_id FOR UPDATE OF callback
) AS again WHERE callback.callback_id = again.callback_id
"""

APPLIED = """
UPDATE callback SET verdict = 'applied', applied_at = $2, due_at = NULL WHERE callback_id = $1 AND verdict <> 'applied'
"""

WAITING_FOR = """
SELECT callback_id, kind, env, merchant_id, subject_id, source, callback.body, body_bytes, received_at FROM callback
WHERE handle = $1 AND handle <> '' AND verdict <> 'applied' ORDER BY callback_id
"""
"""Takes no lock: every path locks the subject before the callback."""

WAITING_AMONG = """
SELECT handle FROM callback WHERE handle = ANY($1::text[]) AND handle <> '' AND verdict <> 'applied'
"""

CLAIM_DUE = """
UPDATE callback SET tries = tries + 1, due_at = $2
WHERE callback_id IN (
    SELECT callback_id FROM callback WHERE verdict = 'waiting' AND due_at <= $1
    ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING callback_id, kind, env, merchant_id, subject_id, source, callback.body, body_bytes, received_at, tries
"""

_SHOWN = """callback_id, kind, received_at, source, env, subject_id, handle, result_code,
    left(body_text(form_id, stored_body, ARRAY[handle]), 65536) AS body, repeats, verdict,
    applied_at, merchant_id, signature"""

_ABOUT = """
SELECT {0} FROM (
    SELECT * FROM callback WHERE subject_id = ANY($1::uuid[])
    UNION
    SELECT * FROM callback WHERE handle = ANY($2::text[]) AND handle <> '' AND subject_id IS NULL
    ORDER BY callback_id LIMIT 100
) AS about ORDER BY callback_id
"""
ABOUT = _ABOUT.format(_SHOWN)

REFUSE = Named("""
INSERT INTO refused_callback (refused_id, kind, at, source, reason, body, merchant_id, subject_id, env, original,
    signature, body_bytes, is_trusted, cut_length, cut_read, cut_sha256, was_forwarded)
VALUES ($refused_id, $kind, $at, $source, $reason, $body, $merchant_id, $subject_id, $env, $original, $signature,
    $body_bytes, $is_trusted, $cut_length, $cut_read, $cut_sha256, $was_forwarded)
""")

UNREAD = "is_trusted AND callback_id IS NULL AND reason IN ('size', 'shape', 'doubled', 'kind', 'receiver')"
"""Unreadable callbacks of trusted senders. The condition of an index."""

REFUSED = KeysetList(
    table="refused_callback",
    key="refused_id",
    prefix="ref",
    of_env=("(env = {} OR env IS NULL)",),
    of_merchants=False,
)
"""By the primary key, for both envs."""

ACCEPTED = KeysetList(
    table="callback",
    key="callback_id",
    prefix="cbk",
    columns=_SHOWN,
    of_env=("env = {}", "env IS NULL"),
    of_merchants=False,
)
"""By an index of its own for each env."""

IS_APPLIED = "SELECT verdict = 'applied' FROM callback WHERE callback_id = $1"

FIND_BY_FINGERPRINT = "SELECT callback_id, verdict FROM callback WHERE fingerprint = $1"

ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('callback ' || $1, 0))"
"""The first lock of a replay."""

COUNT_UNMATCHED = (
    "SELECT count(*) FROM callback WHERE verdict <> 'applied' AND verdict = 'unmatched' AND (env = $1 OR env IS NULL)"
)

COUNT_WAITING = """
SELECT count(*) AS waiting, min(received_at) AS oldest
FROM (
    SELECT received_at FROM callback
    WHERE verdict = 'waiting' AND (env = $1 OR env IS NULL) ORDER BY due_at LIMIT 10000
) AS waits
"""
"""A callback without an env counts in both."""

COUNT_REFUSED_SINCE = """
SELECT count(*) FROM (SELECT 1 FROM refused_callback
    WHERE refused_id >= $1 AND replayed_at IS NULL AND (env = $2 OR env IS NULL) LIMIT 1000) AS late
"""

COUNT_UNREAD = f"""
SELECT count(*) FROM (SELECT 1 FROM refused_callback
    WHERE refused_id >= $1 AND {UNREAD} AND (env = $2 OR env IS NULL) LIMIT 1000) AS unread
"""

OF_CASE = """
SELECT callback_id, kind, received_at, merchant_id, subject_id, handle, verdict, callback.body FROM callback
WHERE callback_id = ANY($1::uuid[]) OR subject_id = ANY($1::uuid[])
    OR (handle = ANY($2::text[]) AND handle <> '' AND (subject_id IS NULL OR merchant_id IS NULL))
FOR UPDATE NOWAIT
"""

WITH_NUMBER = """
SELECT callback_id, CASE WHEN COALESCE(merchant_id = $1, true) AND stored_body LIKE $2 THEN callback.body END AS body
FROM callback WHERE callback_id > $3 ORDER BY callback_id LIMIT $4
"""
"""Scans ``$4`` callbacks, and returns the bodies that may contain the number."""

REFUSED_OF_CASE = """
SELECT refused_id, at, original FROM refused_callback
WHERE (subject_id = ANY($1::uuid[]) OR refused_id = ANY($1::uuid[])) AND original IS NOT NULL
FOR UPDATE NOWAIT
"""

LOOSE_REFUSED = """
SELECT refused_id FROM refused_callback
WHERE (merchant_id = $1 OR merchant_id IS NULL) AND subject_id IS NULL AND original LIKE $2 AND refused_id > $3
ORDER BY refused_id LIMIT $4
"""
"""Scans all refused callbacks: ``keep_refused`` limits their number."""

FORGET = """
DELETE FROM callback WHERE callback_id IN (
    SELECT callback_id FROM callback WHERE callback_id < $1 AND verdict <> 'waiting'
        AND NOT EXISTS (SELECT 1 FROM refused_callback r WHERE r.callback_id = callback.callback_id)
    ORDER BY callback_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FORGET_OLD_REFUSED = """
DELETE FROM refused_callback WHERE refused_id IN (
    SELECT refused_id FROM refused_callback WHERE refused_id < $1 ORDER BY refused_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FORGET_REFUSED = """
DELETE FROM refused_callback WHERE refused_id IN (
    SELECT refused_id FROM refused_callback WHERE NOT is_trusted ORDER BY refused_id DESC OFFSET $1 LIMIT 5000
)
"""

RECENT_REFUSALS = """
SELECT reason, count(*) AS count FROM refused_callback WHERE refused_id >= $1
GROUP BY reason ORDER BY count DESC, reason
"""

RECENT_SOURCES = """
SELECT source, bool_or(was_forwarded) AS was_forwarded FROM (
    (SELECT source, was_forwarded FROM refused_callback WHERE refused_id >= $3 AND reason = 'source'
        ORDER BY refused_id DESC LIMIT 1000)
    UNION ALL
    (SELECT source, false FROM callback WHERE env = 'live' AND callback_id >= $1 ORDER BY callback_id DESC LIMIT 1000)
    UNION ALL
    (SELECT source, false FROM callback WHERE env = 'sandbox' AND NOT $2::boolean AND callback_id >= $1
        ORDER BY callback_id DESC LIMIT 1000)
    UNION ALL
    (SELECT source, false FROM callback WHERE env IS NULL AND NOT $2::boolean AND callback_id >= $1
        ORDER BY callback_id DESC LIMIT 1000)
) AS seen GROUP BY source ORDER BY count(*) DESC, source LIMIT 20
"""
