"""Piccolo tables of runs and statement lines, with the queries that read statements and list runs."""

from typing import Any

from piccolo.columns import Array, Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.db.keyset import Conditions, KeysetList
from mpesa_gateway.db.named import Named


class RegistrationRow(Table, tablename="pull_registration"):
    """A shortcode with Pull enabled."""

    merchant_id = Text(primary_key=True)
    env = Text()
    shortcode = Text()
    response_code = Text()
    response_desc = Text()
    registered_at = Timestamptz()


class RunRow(Table, tablename="reconciliation_run"):
    """One reading of one window of a statement."""

    run_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    receiver_id = Text()
    shortcode = Text()
    cause = Text()
    window_start = Timestamptz()
    window_end = Timestamptz()
    status = Text()
    lease_until = Timestamptz(null=True, default=None)
    pages = Integer()
    lines = Integer()
    malformed = Integer()
    already_known = Integer()
    recovered = Integer()
    not_found = Integer()
    mismatched = Integer()
    ambiguous = Integer()
    error = Text(null=True, default=None)
    started_at = Timestamptz()
    finished_at = Timestamptz(null=True, default=None)


class NoteRow(Table, tablename="statement_note"):
    """Facts of a statement line beyond its transaction, if it was unexplained or its amount or time differs."""

    transaction_id = Text(primary_key=True)
    receiver_id = Text()
    merchant_id = Text()
    env = Text()
    moments = Array(base_column=Timestamptz())
    amount = Integer(null=True, default=None)
    amount_text = Text()
    payer = Text(null=True, default=None)
    finding = Text()
    payment_id = Text(null=True, default=None)
    is_timed = Boolean()
    is_of_till = Boolean()
    is_to_us = Boolean(null=True, default=None)
    zone = Text(null=True, default=None)
    asked_at = Timestamptz(null=True, default=None)
    answered_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    settled_at = Timestamptz(null=True, default=None)
    set_aside_at = Timestamptz(null=True, default=None)
    set_aside_by = Text(null=True, default=None)
    set_aside_reason = Text(null=True, default=None)


class RunLineRow(Table, tablename="reconciliation_line"):
    """The finding of a transaction in one run."""

    run_id = Text(primary_key=True)
    transaction_id = Text()
    finding = Text()


# raw SQL: upsert
REGISTER = """
INSERT INTO pull_registration (merchant_id, env, shortcode, response_code, response_desc, registered_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (merchant_id, env, shortcode) DO UPDATE SET response_code = excluded.response_code,
    response_desc = excluded.response_desc
RETURNING *
"""

START_RUN = Named("""
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
VALUES ($run_id, $merchant_id, $env, $shortcode, $cause, $window_start, $window_end, $lease_until, $started_at,
    $receiver_id)
ON CONFLICT DO NOTHING
RETURNING *
""")

# raw SQL: aggregate
REACHED = """
SELECT max(window_end) FROM reconciliation_run
WHERE merchant_id = $1 AND env = $2 AND shortcode = $3 AND status = 'completed' AND cause = 'cron'
"""
"""Regular runs adjoin without gaps; manual windows do not."""

# raw SQL: array
LEAST_RECENTLY_READ = """
SELECT shortcode_id FROM unnest($1::uuid[]) AS asked (shortcode_id) JOIN shortcode USING (shortcode_id)
    LEFT JOIN LATERAL (
        SELECT run_id FROM reconciliation_run AS run
        WHERE run.merchant_id = shortcode.merchant_id AND run.env = shortcode.env
            AND run.receiver_id = shortcode.receiver_id
        ORDER BY run_id DESC LIMIT 1
    ) AS last ON true
ORDER BY last.run_id NULLS FIRST, shortcode_id
"""

# raw SQL: upsert
STORE_LINES = Named("""
WITH locked AS (
    SELECT transaction_id, finding IN ('new', 'not_found', 'ambiguous') AND set_aside_at IS NULL AS is_open
    FROM statement_note WHERE transaction_id = ANY($transaction_id::uuid[])
    ORDER BY transaction_id FOR UPDATE
), given AS (
    SELECT * FROM unnest($transaction_id::uuid[], $likely::timestamptz[], $other::timestamptz[], $amount::integer[],
        $amount_text::text[], $is_timed::boolean[], $is_explained::boolean[], $is_paid::boolean[], $finding::text[])
        AS t(transaction_id, likely, other, amount, amount_text, is_timed, is_explained, is_paid, finding)
    -- After the notes are locked.
    WHERE (SELECT count(*) FROM locked) IS NOT NULL
), noted AS (
    INSERT INTO statement_note AS known (transaction_id, receiver_id, merchant_id, env, moments, amount, amount_text,
        is_timed, is_of_till, created_at)
    SELECT transaction_id,
        (SELECT receiver_id FROM transaction WHERE transaction.transaction_id = given.transaction_id), $merchant_id,
        $env, array_remove(ARRAY[likely, other], NULL), amount, amount_text, is_timed, $is_of_till, $created_at
    FROM given WHERE NOT is_explained ORDER BY transaction_id
    ON CONFLICT (transaction_id) DO UPDATE SET
        (moments, is_timed) = (
            -- This run's window leaves fewer readings of the time than earlier ones, or the first possible one.
            SELECT CASE WHEN learns THEN excluded.moments ELSE known.moments END,
                known.is_timed OR excluded.is_timed
            FROM (SELECT excluded.is_timed AND known.payment_id IS NULL AND known.answered_at IS NULL
                AND (NOT known.is_timed OR cardinality(excluded.moments) < cardinality(known.moments)) AS learns
            ) AS merged)
    RETURNING transaction_id, finding, set_aside_at
)
INSERT INTO reconciliation_line (run_id, transaction_id, finding)
SELECT $run_id, given.transaction_id, CASE
    -- Another report has completed its payment: the note is written after the payment is locked.
    WHEN noted.finding IS NULL THEN
        CASE WHEN locked.is_open AND is_paid THEN 'new' ELSE given.finding END
    WHEN noted.finding = 'recovered' THEN 'already_known'
    WHEN noted.finding IN ('not_found', 'ambiguous') AND set_aside_at IS NULL THEN 'new' ELSE noted.finding END
FROM given LEFT JOIN noted ON noted.transaction_id = given.transaction_id
    LEFT JOIN locked ON locked.transaction_id = given.transaction_id
ORDER BY given.transaction_id
ON CONFLICT (run_id, transaction_id) DO NOTHING
RETURNING transaction_id
""")

# raw SQL: join
UNSETTLED = """
SELECT noted_line.* FROM reconciliation_line JOIN noted_line ON line_id = transaction_id
WHERE run_id = $1 AND reconciliation_line.finding = 'new' AND line_id > $2
ORDER BY line_id LIMIT 200
"""

UNSETTLED_OF_PAGE = """
SELECT noted_line.* FROM reconciliation_line JOIN noted_line ON line_id = transaction_id
WHERE run_id = $1 AND reconciliation_line.finding = 'new' AND receipt = ANY($2::text[])
ORDER BY line_id
"""

REVERSALS_OF_RUN = """
SELECT noted_line.* FROM reconciliation_line JOIN noted_line ON line_id = transaction_id
WHERE run_id = $1 AND line_id > $2 AND kind ILIKE '%revers%' AND payment_id IS NULL AND set_aside_at IS NULL
ORDER BY line_id LIMIT 200
"""

# raw SQL: aggregate
FINISH = """
WITH counted AS (
    SELECT count(*) AS lines,
        count(*) FILTER (WHERE finding = 'already_known') AS already_known,
        count(*) FILTER (WHERE finding = 'recovered') AS recovered,
        count(*) FILTER (WHERE finding = 'not_found') AS not_found,
        count(*) FILTER (WHERE finding = 'mismatched') AS mismatched,
        count(*) FILTER (WHERE finding = 'ambiguous') AS ambiguous
    FROM reconciliation_line WHERE run_id = $1
)
UPDATE reconciliation_run SET status = $2, error = $3, finished_at = $4, lease_until = NULL, lines = counted.lines,
    already_known = counted.already_known, recovered = counted.recovered, not_found = counted.not_found,
    mismatched = counted.mismatched, ambiguous = counted.ambiguous
FROM counted WHERE run_id = $1 AND status = 'running'
"""

RUNS = KeysetList(table="reconciliation_run", key="run_id", prefix="run")

RUN_LINES = KeysetList(
    table="reconciliation_line",
    key="transaction_id",
    time="paid_at",
    prefix="txn",
    source="reconciliation_line JOIN reconciliation_run USING (run_id) JOIN statement ON line_id = transaction_id",
    columns="""transaction_id, line_id, statement.env, receipt, amount, amount_text, phone, reference, kind, moments,
        paid_at, asked_at, set_aside_at, statement.finding, reconciliation_line.finding AS run_finding,
        CASE WHEN statement.merchant_id = reconciliation_run.merchant_id THEN payment_id END AS payment_id""",
    of_env=(),
    of_merchants=False,
    oldest_first=True,
)
"""A payment is shown to its own merchant only: several merchants may read a sandbox number."""


def lines_of(run: Found, finding: str | None) -> Conditions:
    found = Conditions(run["env"])
    found.add("run_id = {}", run["run_id"])
    if finding is not None:
        found.add("reconciliation_line.finding = {}", finding)
    return found


# raw SQL: array
NOTES_OF_CASE = """
SELECT *, EXISTS (SELECT 1 FROM transaction AS money
    WHERE money.transaction_id = statement_note.transaction_id AND subject_id IS NOT NULL) AS is_allocated
FROM statement_note WHERE transaction_id = ANY($1::uuid[]) OR payment_id = ANY($1::uuid[])
FOR UPDATE NOWAIT
"""

# raw SQL: declared
FORGET_RUNS = """
WITH old AS (
    SELECT run_id FROM reconciliation_run WHERE run_id < $1 AND status <> 'running'
    -- Each run may have hundreds of lines, which are deleted with it.
    ORDER BY run_id LIMIT GREATEST($2 / 50, 1) FOR UPDATE SKIP LOCKED
), lines AS (
    DELETE FROM reconciliation_line WHERE run_id IN (SELECT run_id FROM old)
)
DELETE FROM reconciliation_run WHERE run_id IN (SELECT run_id FROM old)
"""

FORGET_NOTES = """
DELETE FROM statement_note WHERE transaction_id IN (
    SELECT transaction_id FROM statement_note WHERE transaction_id < $1
        AND (finding IN ('already_known', 'recovered', 'not_found') OR set_aside_at IS NOT NULL
            OR (finding = 'ambiguous' AND (SELECT subject_id FROM transaction AS money
                WHERE money.transaction_id = statement_note.transaction_id) IS NOT NULL))
        AND NOT EXISTS (SELECT 1 FROM reconciliation_line r WHERE r.transaction_id = statement_note.transaction_id)
    ORDER BY transaction_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

# raw SQL: own connection - a view has no table class.
FIND_LINE = "SELECT * FROM statement WHERE line_id = $1"
FIND_LINE_OF = """
SELECT * FROM statement WHERE env = $2 AND line_id = $3 AND (merchant_id = $1 OR EXISTS (
    SELECT 1 FROM reconciliation_line JOIN reconciliation_run USING (run_id)
    WHERE transaction_id = $3 AND reconciliation_run.merchant_id = $1))
"""
"""A line of this merchant, or one that its runs have read."""

UNRESOLVED = "finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL AND NOT is_known"
"""Noted lines of money without a subject, and contradictions, that await review."""

# raw SQL: join
RUNS_OF_LINE = """
SELECT reconciliation_run.run_id, started_at, reconciliation_line.finding
FROM reconciliation_line JOIN reconciliation_run USING (run_id) WHERE transaction_id = $1
ORDER BY started_at DESC LIMIT 20
"""

LINES_OF_PAYMENT = """
SELECT statement.* FROM statement
WHERE line_id = ANY (ARRAY(
        SELECT transaction_id FROM transaction WHERE subject_kind = 'payment' AND subject_id = $1
        UNION SELECT note.transaction_id FROM statement_note AS note WHERE note.payment_id = $1))
    AND payment_id = $1
    AND EXISTS (SELECT 1 FROM reconciliation_line WHERE reconciliation_line.transaction_id = line_id)
ORDER BY statement.created_at LIMIT 20
"""

# raw SQL: aggregate
COUNT_UNRESOLVED = f"""
SELECT count(*) FILTER (WHERE finding IS DISTINCT FROM 'not_found') AS conflicting, count(*) AS total FROM (
    SELECT open.finding FROM merchant CROSS JOIN LATERAL (
        SELECT finding FROM noted_line
        WHERE noted_line.merchant_id = merchant.merchant_id AND noted_line.env = $1 AND {UNRESOLVED}
        LIMIT 1000) AS open WHERE $2::uuid IS NULL OR merchant.merchant_id = $2) AS lines
"""

COUNT_UNRESOLVED_BY_FINDING = f"""
SELECT world AS env, open.finding, count(*) AS count
FROM merchant CROSS JOIN unnest(ARRAY['sandbox', 'live']) AS world CROSS JOIN LATERAL (
    SELECT finding FROM noted_line
    WHERE noted_line.merchant_id = merchant.merchant_id AND noted_line.env = world AND {UNRESOLVED}
    ORDER BY paid_at DESC LIMIT 1000) AS open
GROUP BY world, open.finding
"""

# raw SQL: join
SET_ASIDE_OF_RUN = """
UPDATE statement_note SET set_aside_at = $2, set_aside_by = $3, set_aside_reason = $4
WHERE transaction_id IN (
    SELECT transaction_id FROM statement_note
    WHERE transaction_id IN (SELECT transaction_id FROM reconciliation_line WHERE run_id = $1 AND finding = 'not_found')
        AND finding = 'not_found' AND set_aside_at IS NULL AND NOT EXISTS (
            SELECT 1 FROM transaction AS money
            WHERE money.transaction_id = statement_note.transaction_id AND subject_id IS NOT NULL)
    ORDER BY transaction_id FOR UPDATE
) RETURNING transaction_id
"""

# raw SQL: aggregate
COUNT_FAILING = """
SELECT count(DISTINCT shortcode.merchant_id) FROM shortcode CROSS JOIN LATERAL (
    SELECT status FROM reconciliation_run
    WHERE reconciliation_run.receiver_id = shortcode.receiver_id
        AND reconciliation_run.merchant_id = shortcode.merchant_id
    ORDER BY run_id DESC LIMIT 1) AS last
WHERE env = ANY($1::text[]) AND wiped_at IS NULL AND last.status = 'failed'
    AND ($2::uuid IS NULL OR shortcode.merchant_id = $2)
"""


async def find_run(db: Database, run_id: str) -> Found | None:
    rows: list[dict[str, Any]] = await db.run(RunRow.select().where(RunRow.run_id == run_id))
    return rows[0] if rows else None
