"""Queries that match unallocated money with payments: candidates, locks and findings."""

# raw SQL: join
UNALLOCATED = """
SELECT found.* FROM (
    SELECT * FROM unnest($2::text[], $3::integer[], $4::timestamptz[]) AS t(number, value, since)
    LIMIT cardinality($2)
) AS wanted CROSS JOIN LATERAL (
    SELECT receipt, receiver.env, receiver.number AS shortcode, transaction.kind, account_number AS reference,
        COALESCE(note.payer, payer_digest, transaction.payer) AS phone, wanted.value AS amount,
        COALESCE(amount_text, wanted.value::text) AS amount_text, COALESCE(moments, ARRAY[occurred_at]) AS moments,
        COALESCE(is_timed, true) AS is_timed, COALESCE(is_of_till, false) AS is_of_till, is_to_us, answered_at
    FROM transaction JOIN receiver USING (receiver_id)
        LEFT JOIN statement_note AS note ON note.transaction_id = transaction.transaction_id
            AND note.transaction_id >= id_least('txn', wanted.since - interval '48 hours')
    WHERE receiver.env = $1 AND receiver.number = wanted.number AND amount_cents = wanted.value * 100::bigint
        AND direction = 'in' AND subject_id IS NULL AND conflict_id IS NULL
        AND transaction.transaction_id >= id_least('txn', wanted.since - interval '48 hours')
        AND COALESCE(note.created_at, occurred_at + interval '2 minutes') >= wanted.since AND dismissed_at IS NULL
        AND (note.transaction_id IS NOT NULL OR first_source <> 'status' OR account_number IS NOT NULL)
    ORDER BY transaction.transaction_id DESC LIMIT 1000
) AS found
"""
"""Unallocated money of these receivers, of all merchants, except money known from status answers only.

A statement shows the last 48 hours, so a note is written at most that long after its transaction. The bound is stated
for both tables: Postgres infers only equal columns.
"""

ZONES = """
SELECT zone FROM statement_note
WHERE receiver_id = (SELECT receiver_id FROM receiver WHERE env = $1 AND number = $2) AND env = $1 AND zone IS NOT NULL
ORDER BY transaction_id DESC LIMIT 5
"""

# raw SQL: lock
STORE_FINDINGS = """
WITH open AS (
    SELECT transaction_id FROM statement_note
    WHERE transaction_id = ANY($1::uuid[]) AND payment_id IS NULL AND dismissed_at IS NULL
    ORDER BY transaction_id FOR UPDATE
), found AS (
    UPDATE statement_note SET finding = $2 FROM open WHERE statement_note.transaction_id = open.transaction_id
)
UPDATE reconciliation_line AS line SET finding = CASE
    WHEN (SELECT money.is_settled AND money.merchant_id = run.merchant_id
        FROM transaction AS money, reconciliation_run AS run
        WHERE money.transaction_id = line.transaction_id AND run.run_id = line.run_id) THEN 'already_known'
    WHEN transaction_id IN (SELECT transaction_id FROM open) THEN $2
    WHEN (SELECT payment_id FROM statement_note n WHERE n.transaction_id = line.transaction_id)
        IS NOT NULL THEN 'already_known'
    ELSE (SELECT n.finding FROM statement_note n WHERE n.transaction_id = line.transaction_id) END
WHERE run_id = $3 AND transaction_id = ANY($1::uuid[])
"""

# raw SQL: expression
STORE_RUN_FINDING = """
UPDATE reconciliation_line AS line SET finding = CASE
    WHEN $3 IN ('not_found', 'ambiguous') AND money.is_settled AND money.merchant_id = run.merchant_id
    THEN 'already_known' ELSE $3 END
FROM transaction AS money, reconciliation_run AS run
WHERE line.run_id = $1 AND line.transaction_id = $2 AND money.transaction_id = $2 AND run.run_id = $1
"""

# raw SQL: expression
STORE_FINDING = """
UPDATE statement_note SET finding = $2, payment_id = $3, merchant_id = COALESCE($5, merchant_id),
    settled_at = CASE WHEN $3::uuid IS NOT NULL THEN $4::timestamptz END
WHERE transaction_id = $1
RETURNING transaction_id
"""
"""A line of another merchant's payment moves to that merchant."""

# raw SQL: lock
LOCK_NOTE = """
SELECT payment_id, dismissed_at, direction, subject_kind FROM transaction JOIN statement_note USING (transaction_id)
WHERE transaction_id = $1 FOR UPDATE
"""
"""Locks the transaction before its note."""

# raw SQL: array
OPEN_LIKE = """
SELECT * FROM noted_line
WHERE finding = 'ambiguous' AND dismissed_at IS NULL AND line_id = ANY (ARRAY(
    SELECT $4::uuid UNION ALL (
        SELECT transaction_id FROM transaction JOIN receiver USING (receiver_id)
            JOIN statement_note AS note USING (transaction_id)
        WHERE receiver.env = $1 AND receiver.number = $2 AND amount_cents = $3 * 100::bigint AND direction = 'in'
            AND subject_id IS NULL AND conflict_id IS NULL
            AND transaction.transaction_id >= id_least('txn', $6::timestamptz - interval '48 hours')
            AND note.transaction_id >= id_least('txn', $6::timestamptz - interval '48 hours')
            AND note.merchant_id = $5 AND asked_at IS NOT NULL
            AND finding = 'ambiguous' AND dismissed_at IS NULL
        ORDER BY note.created_at DESC LIMIT 100)))
ORDER BY line_id
"""
"""The queried line and the newest similar ones since ``$6``, the earliest time of money for the same payments.

A transaction is recorded after its money; 48 hours cover readings in another zone and differing clocks.
"""

# raw SQL: expression
STORE_ANSWER = """
UPDATE statement_note AS note SET
    payer = CASE WHEN 'erased' IN (note.payer, (SELECT payer FROM transaction WHERE transaction_id = $1))
        THEN note.payer ELSE COALESCE($2, note.payer) END,
    moments = COALESCE($3::timestamptz[], moments), is_timed = is_timed OR $3 IS NOT NULL, answered_at = $4,
    is_to_us = $5
WHERE transaction_id = $1
"""
"""An answer after an erasure does not restore the payer's number."""
