"""Runs and statement lines as Piccolo knows them, and the named queries on them; the migrations say the rest."""

from piccolo.columns import Array, Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.lists import Conditions, Listing
from mpesa_gateway.db.named import Named


class RegistrationRow(Table, tablename="pull_registration"):
    """A shortcode that Pull has been enabled for."""

    merchant_id = Text(primary_key=True)
    env = Text()
    shortcode = Text()
    response_code = Text()
    response_desc = Text()
    registered_at = Timestamptz()


class RunRow(Table, tablename="reconciliation_run"):
    """One reading of one window of a merchant's statement."""

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


class LineRow(Table, tablename="statement_line"):
    """One row of a statement, kept once however often it is read."""

    line_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    shortcode = Text()
    receipt = Text()
    moments = Array(base_column=Timestamptz())
    amount = Integer(null=True, default=None)
    amount_text = Text()
    phone = Text(null=True, default=None)
    reference = Text(null=True, default=None)
    kind = Text(null=True, default=None)
    organisation = Text(null=True, default=None)
    finding = Text()
    payment_id = Text(null=True, default=None)
    is_timed = Boolean()
    zone = Text(null=True, default=None)
    answered_at = Timestamptz(null=True, default=None)
    is_to_us = Boolean(null=True, default=None)
    asked_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    settled_at = Timestamptz(null=True, default=None)
    set_aside_at = Timestamptz(null=True, default=None)
    set_aside_by = Text(null=True, default=None)
    set_aside_reason = Text(null=True, default=None)
    is_of_till = Boolean(default=False)


class RunLineRow(Table, tablename="reconciliation_line"):
    """What a line was found to be in one run."""

    run_id = Text(primary_key=True)
    line_id = Text()
    finding = Text()


REGISTER = """
INSERT INTO pull_registration (merchant_id, env, shortcode, response_code, response_desc, registered_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (merchant_id, env, shortcode) DO UPDATE SET response_code = excluded.response_code,
    response_desc = excluded.response_desc
RETURNING *
"""

REGISTERED_AT = "SELECT registered_at FROM pull_registration WHERE merchant_id = $1 AND env = $2 AND shortcode = $3"

INTERRUPTED = """
UPDATE reconciliation_run SET status = 'failed', error = 'the process that ran it was stopped', lease_until = NULL,
    finished_at = $2
WHERE receiver_id = $1 AND status = 'running' AND lease_until < $2
"""

BEGIN = Named("""
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, lease_until,
    started_at, receiver_id)
VALUES ($run_id, $merchant_id, $env, $shortcode, $cause, $window_start, $window_end, $lease_until, $started_at,
    $receiver_id)
ON CONFLICT DO NOTHING
RETURNING *
""")

REACHED = """
SELECT max(window_end) FROM reconciliation_run
WHERE merchant_id = $1 AND env = $2 AND shortcode = $3 AND status = 'completed' AND cause = 'cron'
"""
"""Only regular runs join each other without a gap; a manual one reads whatever window somebody wanted."""

LAST_ERROR = """
SELECT error FROM reconciliation_run WHERE merchant_id = $1 AND env = $2 ORDER BY run_id DESC LIMIT 1
"""

PAGE_READ = """
UPDATE reconciliation_run SET pages = pages + 1, malformed = malformed + $2, lease_until = $3
WHERE run_id = $1 AND status = 'running'
RETURNING run_id
"""

BEAT = "UPDATE reconciliation_run SET lease_until = $2 WHERE run_id = $1 AND status = 'running'"

KEEP_LINES = Named("""
WITH given AS (
    SELECT * FROM unnest($line_id::uuid[], $receipt::text[], $likely::timestamptz[], $other::timestamptz[],
        $amount::integer[], $amount_text::text[], $phone::text[], $reference::text[], $kind::text[],
        $organisation::text[], $is_timed::boolean[])
        AS t(line_id, receipt, likely, other, amount, amount_text, phone, reference, kind, organisation, is_timed)
), kept AS (
    INSERT INTO statement_line (line_id, merchant_id, env, shortcode, receipt, moments, amount, amount_text, phone,
        reference, kind, organisation, is_timed, created_at, is_of_till)
    SELECT line_id, $merchant_id, $env, $shortcode, receipt, array_remove(ARRAY[likely, other], NULL), amount,
        amount_text, phone, reference, kind, organisation, is_timed, $created_at, $is_of_till
    FROM given ORDER BY receipt
    ON CONFLICT (merchant_id, env, receipt) DO UPDATE SET receipt = excluded.receipt,
        (moments, is_timed) = (
            -- The window of this run leaves fewer readings of the time than those before, or the first possible one.
            SELECT CASE WHEN learns THEN excluded.moments ELSE statement_line.moments END,
                statement_line.is_timed OR excluded.is_timed
            FROM (SELECT excluded.is_timed AND statement_line.payment_id IS NULL AND statement_line.answered_at IS NULL
                AND (NOT statement_line.is_timed
                    OR cardinality(excluded.moments) < cardinality(statement_line.moments)) AS learns) AS told)
    RETURNING line_id, finding, set_aside_at
)
INSERT INTO reconciliation_line (run_id, line_id, finding)
SELECT $run_id, line_id, CASE WHEN finding = 'recovered' THEN 'already_known'
    WHEN finding IN ('not_found', 'ambiguous') AND set_aside_at IS NULL THEN 'new' ELSE finding END
FROM kept ORDER BY line_id
ON CONFLICT (run_id, line_id) DO NOTHING
RETURNING line_id
""")

UNSETTLED = """
SELECT statement_line.* FROM reconciliation_line JOIN statement_line USING (line_id)
WHERE run_id = $1 AND reconciliation_line.finding = 'new' AND line_id > $2
ORDER BY line_id LIMIT 200
"""

UNSETTLED_OF_PAGE = """
SELECT statement_line.* FROM reconciliation_line JOIN statement_line USING (line_id)
WHERE run_id = $1 AND reconciliation_line.finding = 'new' AND receipt = ANY($2::text[])
ORDER BY line_id
"""

REVERSALS_OF_RUN = """
SELECT statement_line.* FROM reconciliation_line JOIN statement_line USING (line_id)
WHERE run_id = $1 AND line_id > $2 AND kind ILIKE '%revers%' AND payment_id IS NULL AND set_aside_at IS NULL
ORDER BY line_id LIMIT 200
"""

UNALLOCATED = """
SELECT found.* FROM (
    SELECT * FROM unnest($2::text[], $3::integer[], $4::timestamptz[]) AS t(number, value, since)
    LIMIT cardinality($2)
) AS wanted CROSS JOIN LATERAL (
    SELECT * FROM statement_line
    WHERE env = $1 AND shortcode = wanted.number AND amount = wanted.value AND created_at >= wanted.since
        AND finding IN ('new', 'not_found', 'ambiguous') AND set_aside_at IS NULL
    ORDER BY created_at DESC LIMIT 1000
) AS found
"""
"""Lines of all merchants of these receivers that belong to no payment."""

ZONES = """
SELECT zone FROM statement_line WHERE env = $1 AND shortcode = $2 AND zone IS NOT NULL ORDER BY line_id DESC LIMIT 5
"""

PROVE_ZONE = "UPDATE statement_line SET zone = $2, moments = $3 WHERE line_id = $1"

FOUND_MANY = """
WITH open AS (
    -- In the order in which KEEP_LINES takes them.
    SELECT line_id FROM statement_line
    WHERE line_id = ANY($1::uuid[]) AND payment_id IS NULL AND set_aside_at IS NULL
    ORDER BY merchant_id, env, receipt FOR UPDATE
), found AS (
    UPDATE statement_line SET finding = $2 FROM open WHERE statement_line.line_id = open.line_id
)
UPDATE reconciliation_line SET finding = CASE
    WHEN line_id IN (SELECT line_id FROM open) THEN $2
    WHEN (SELECT payment_id FROM statement_line s WHERE s.line_id = reconciliation_line.line_id) IS NOT NULL
        THEN 'already_known'
    ELSE (SELECT s.finding FROM statement_line s WHERE s.line_id = reconciliation_line.line_id) END
WHERE run_id = $3 AND line_id = ANY($1::uuid[])
"""

FOUND = """
UPDATE statement_line SET finding = $2, payment_id = $3,
    settled_at = CASE WHEN $3::uuid IS NOT NULL THEN $4::timestamptz END
WHERE line_id = $1
RETURNING *
"""

FOUND_IN_RUN = "UPDATE reconciliation_line SET finding = $3 WHERE run_id = $1 AND line_id = $2"

ASKED = "UPDATE statement_line SET asked_at = $2 WHERE line_id = $1"

FIND_LINE = "SELECT * FROM statement_line WHERE line_id = $1"

LOCK_ANY_LINE = "SELECT * FROM statement_line WHERE line_id = $1 FOR UPDATE"

OPEN_LIKE = """
SELECT * FROM statement_line
WHERE finding = 'ambiguous' AND set_aside_at IS NULL AND line_id = ANY (ARRAY(
    SELECT $4 UNION ALL (
        SELECT line_id FROM statement_line
        WHERE env = $1 AND shortcode = $2 AND amount = $3 AND merchant_id = $5 AND asked_at IS NOT NULL
            AND finding IN ('new', 'not_found', 'ambiguous') AND finding = 'ambiguous' AND set_aside_at IS NULL
        ORDER BY created_at DESC LIMIT 100)))
ORDER BY line_id
"""
"""The line that was asked about and the newest that it may have left alone: the new number may decide those too."""

LEARN = """
UPDATE statement_line SET phone = COALESCE($2, phone), moments = COALESCE($3::timestamptz[], moments),
    is_timed = is_timed OR $3 IS NOT NULL, answered_at = $4, is_to_us = $5
WHERE line_id = $1
"""

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

FIND_RUN = "SELECT * FROM reconciliation_run WHERE merchant_id = $1 AND env = $2 AND run_id = $3"

RUNS = Listing(table="reconciliation_run", key="run_id", prefix="run")

RUN_LINES = Listing(
    table="reconciliation_line",
    key="line_id",
    prefix="lin",
    source="reconciliation_line JOIN statement_line USING (line_id)",
    columns="statement_line.*, reconciliation_line.finding AS run_finding",
    of_env=(),
    of_merchants=False,
    oldest_first=True,
)


def lines_of(run: Row, finding: str | None) -> Conditions:
    """Return the conditions for the lines of a run."""
    found = Conditions(run["env"])
    found.add("run_id = {}", run["run_id"])
    if finding is not None:
        found.add("reconciliation_line.finding = {}", finding)
    return found


LOOSE_LINES_OF_PAYER = """
SELECT line_id FROM statement_line
WHERE merchant_id = $1 AND phone = ANY($2::text[]) AND payment_id IS NULL AND line_id > $3
ORDER BY line_id LIMIT $4
"""

LINES_OF_CASE = """
SELECT * FROM statement_line WHERE line_id = ANY($1::uuid[]) OR payment_id = ANY($1::uuid[])
FOR UPDATE NOWAIT
"""

ERASE = """
UPDATE statement_line SET phone = $2, reference = $3, set_aside_reason = $4 WHERE line_id = $1
"""

FORGET_RUNS = """
WITH old AS (
    SELECT run_id FROM reconciliation_run WHERE run_id < $1 AND status <> 'running'
    -- With each run go its lines, perhaps hundreds.
    ORDER BY run_id LIMIT GREATEST($2 / 50, 1) FOR UPDATE SKIP LOCKED
), lines AS (
    DELETE FROM reconciliation_line WHERE run_id IN (SELECT run_id FROM old)
)
DELETE FROM reconciliation_run WHERE run_id IN (SELECT run_id FROM old)
"""

FORGET_LINES = """
DELETE FROM statement_line WHERE line_id IN (
    SELECT line_id FROM statement_line WHERE line_id < $1
        AND (finding IN ('already_known', 'recovered', 'not_found') OR set_aside_at IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM reconciliation_line r WHERE r.line_id = statement_line.line_id)
    ORDER BY line_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FIND_LINE_OF = "SELECT * FROM statement_line WHERE merchant_id = $1 AND env = $2 AND line_id = $3"

UNRESOLVED = "finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL"
"""Lines that no payment explains, and that nobody has seen to."""

FIND_ANY_RUN = "SELECT * FROM reconciliation_run WHERE run_id = $1"

RUNS_OF_LINE = """
SELECT reconciliation_run.run_id, started_at, reconciliation_line.finding
FROM reconciliation_line JOIN reconciliation_run USING (run_id) WHERE line_id = $1 ORDER BY started_at DESC LIMIT 20
"""

LINES_OF_PAYMENT = "SELECT * FROM statement_line WHERE payment_id = $1 ORDER BY created_at LIMIT 20"

COUNT_UNRESOLVED = f"""
SELECT count(*) FILTER (WHERE finding <> 'not_found') AS gravely, count(*) AS in_all FROM (
    SELECT open.finding FROM merchant CROSS JOIN LATERAL (
        SELECT finding FROM statement_line
        WHERE statement_line.merchant_id = merchant.merchant_id AND statement_line.env = $1 AND {UNRESOLVED}
        LIMIT 1000) AS open) AS lines
"""  # noqa: S608 - the clause above

COUNT_UNRESOLVED_BY_FINDING = f"""
SELECT world AS env, open.finding, count(*) AS count
FROM merchant CROSS JOIN unnest(ARRAY['sandbox', 'live']) AS world CROSS JOIN LATERAL (
    SELECT finding FROM statement_line
    WHERE statement_line.merchant_id = merchant.merchant_id AND statement_line.env = world AND {UNRESOLVED}
    ORDER BY line_id DESC LIMIT 1000) AS open
GROUP BY world, open.finding
"""  # noqa: S608 - likewise

SET_ASIDE = f"""
UPDATE statement_line SET set_aside_at = $2, set_aside_by = $3, set_aside_reason = $4
WHERE line_id = $1 AND {UNRESOLVED} RETURNING merchant_id, env, finding
"""  # noqa: S608 - likewise

SET_ASIDE_OF_RUN = f"""
UPDATE statement_line SET set_aside_at = $2, set_aside_by = $3, set_aside_reason = $4
WHERE line_id IN (
    SELECT line_id FROM statement_line
    WHERE line_id IN (SELECT line_id FROM reconciliation_line WHERE run_id = $1 AND finding = 'not_found')
        AND finding = 'not_found' AND {UNRESOLVED}
    ORDER BY merchant_id, env, receipt FOR UPDATE
) RETURNING line_id
"""  # noqa: S608 - likewise

REGISTRATIONS = "SELECT * FROM pull_registration WHERE merchant_id = $1 AND env = $2 ORDER BY registered_at DESC"

COUNT_FAILING = """
SELECT count(*) FROM merchant CROSS JOIN unnest($1::text[]) AS world CROSS JOIN LATERAL (
    SELECT status FROM reconciliation_run
    WHERE reconciliation_run.merchant_id = merchant.merchant_id AND reconciliation_run.env = world
    ORDER BY run_id DESC LIMIT 1) AS last
WHERE last.status = 'failed'
"""
