-- contract: a line of a statement becomes a transaction, or another witness of one; nothing is released yet.
-- The first merchant's line makes the transaction of a receipt that is known from statements only.
INSERT INTO transaction AS known (transaction_id, env, receiver_id, merchant_id, direction, kind, receipt, amount_cents,
    payer, account_number, occurred_at, conflict_id, first_source)
SELECT 'txn_' || substr(line_id, 5), env, receiver_id, merchant_id, direction, kind, receipt, amount * 100::bigint, phone,
    reference, moments[1], CASE finding WHEN 'mismatched' THEN payment_id END, 'pull'
FROM (
    SELECT DISTINCT ON (env, direction, receipt) * FROM (
        SELECT statement_line.*, receiver_id, CASE WHEN amount_text ~ '^\s*[-(]' OR amount_text ~ '[-)]\s*$'
            OR statement_line.kind ~* 'revers|b2c|b2b|payout|charge|withdraw|salary|promotion|business.?payment'
            THEN 'out' ELSE 'in' END AS direction
        FROM statement_line JOIN receiver ON receiver.env = statement_line.env AND receiver.number = shortcode
    ) AS line
    ORDER BY env, direction, receipt, payment_id IS NULL, line_id
) AS first
ORDER BY env, direction, receipt
ON CONFLICT (env, direction, receipt) DO UPDATE SET kind = COALESCE(known.kind, excluded.kind),
    account_number = COALESCE(known.account_number, excluded.account_number),
    conflict_id = COALESCE(known.conflict_id, excluded.conflict_id);

-- What reconciliation knows of a transaction that its own columns do not say: a row for a line that was not explained when
-- it was read, or that states its amount or its time differently. payer is what M-Pesa answered to a question.
CREATE TABLE statement_note (
    transaction_id text COLLATE "C" PRIMARY KEY REFERENCES transaction,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    moments timestamptz[] NOT NULL CHECK (cardinality(moments) BETWEEN 1 AND 2),
    amount integer CHECK (amount >= 0),
    amount_text text NOT NULL,
    payer text,
    finding text NOT NULL DEFAULT 'new'
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    payment_id text COLLATE "C" REFERENCES payment,
    is_timed boolean NOT NULL,
    is_of_till boolean NOT NULL,
    is_to_us boolean,
    zone text CHECK (zone IN ('eat', 'utc')),
    asked_at timestamptz,
    answered_at timestamptz,
    created_at timestamptz NOT NULL,
    settled_at timestamptz,
    set_aside_at timestamptz,
    set_aside_by text,
    set_aside_reason text,
    CONSTRAINT statement_note_payment_where_found
        CHECK ((payment_id IS NOT NULL) = (finding IN ('already_known', 'recovered', 'mismatched'))),
    CONSTRAINT statement_note_settled_with_its_payment CHECK ((settled_at IS NULL) = (payment_id IS NULL)),
    CONSTRAINT statement_note_set_aside_says_why CHECK (
        num_nulls(set_aside_at, set_aside_by, set_aside_reason) IN (0, 3) AND set_aside_reason <> '')
);
INSERT INTO statement_note (transaction_id, merchant_id, env, moments, amount, amount_text, finding, payment_id, is_timed,
    is_of_till, is_to_us, zone, asked_at, answered_at, created_at, settled_at, set_aside_at, set_aside_by, set_aside_reason)
SELECT DISTINCT ON (transaction_id) transaction_id, line.merchant_id, line.env, moments, amount, amount_text, finding,
    payment_id, is_timed, is_of_till, is_to_us, zone, asked_at, answered_at, created_at, settled_at, set_aside_at,
    set_aside_by, set_aside_reason
FROM statement_line AS line JOIN transaction ON transaction.env = line.env AND transaction.receipt = line.receipt
    AND transaction.direction = CASE WHEN amount_text ~ '^\s*[-(]' OR amount_text ~ '[-)]\s*$'
        OR line.kind ~* 'revers|b2c|b2b|payout|charge|withdraw|salary|promotion|business.?payment'
        THEN 'out' ELSE 'in' END
ORDER BY transaction_id, payment_id IS NULL, line_id;
CREATE INDEX statement_note_unresolved ON statement_note (merchant_id, env, created_at DESC, transaction_id DESC)
    WHERE finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL;
CREATE INDEX statement_note_payment ON statement_note (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX statement_note_payer ON statement_note (merchant_id, payer) WHERE payment_id IS NULL AND payer IS NOT NULL;
CREATE INDEX statement_note_zone ON statement_note (env, transaction_id DESC) WHERE zone IS NOT NULL;
CREATE TRIGGER statement_note_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON statement_note
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL) EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');

ALTER TABLE reconciliation_line RENAME TO reconciliation_line_before;
CREATE TABLE reconciliation_line (
    run_id text COLLATE "C" NOT NULL REFERENCES reconciliation_run,
    transaction_id text COLLATE "C" NOT NULL REFERENCES transaction,
    finding text NOT NULL
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    CONSTRAINT reconciliation_line_once PRIMARY KEY (run_id, transaction_id)
);
INSERT INTO reconciliation_line (run_id, transaction_id, finding)
SELECT DISTINCT ON (run_id, transaction_id) run_id, transaction_id, before.finding
FROM reconciliation_line_before AS before JOIN statement_line AS line USING (line_id)
    JOIN transaction ON transaction.env = line.env AND transaction.receipt = line.receipt
        AND transaction.direction = CASE WHEN amount_text ~ '^\s*[-(]' OR amount_text ~ '[-)]\s*$'
            OR line.kind ~* 'revers|b2c|b2b|payout|charge|withdraw|salary|promotion|business.?payment'
            THEN 'out' ELSE 'in' END
ORDER BY run_id, transaction_id;
DROP TABLE reconciliation_line_before;
DROP TABLE statement_line;
CREATE INDEX reconciliation_line_finding ON reconciliation_line (run_id, finding, transaction_id);
-- A note is deleted once no run has its line any more.
CREATE INDEX reconciliation_line_transaction ON reconciliation_line (transaction_id);

-- A line as runs, pages and the judge read it.
CREATE VIEW noted_line AS
SELECT note.transaction_id AS line_id, note.merchant_id, note.env, receiver.number AS shortcode, receipt, moments, amount,
    amount_text, COALESCE(note.payer, transaction.payer) AS phone, account_number AS reference, transaction.kind, finding,
    payment_id, is_timed, is_of_till, is_to_us, zone, asked_at, answered_at, note.created_at, settled_at, set_aside_at,
    set_aside_by, set_aside_reason
FROM statement_note AS note JOIN transaction USING (transaction_id) JOIN receiver USING (receiver_id);

-- The same also of transactions without a note: the money of a payment, as it was reported before.
CREATE VIEW statement AS
SELECT transaction_id AS line_id, COALESCE(note.merchant_id, transaction.merchant_id) AS merchant_id,
    COALESCE(note.env, transaction.env) AS env, receiver.number AS shortcode, receipt,
    COALESCE(moments, ARRAY[occurred_at]) AS moments,
    CASE WHEN note.env IS NULL THEN (amount_cents / 100)::integer ELSE amount END AS amount,
    COALESCE(amount_text, (amount_cents / 100) || '.00') AS amount_text,
    COALESCE(note.payer, transaction.payer) AS phone, account_number AS reference, transaction.kind,
    COALESCE(finding, CASE subject_kind WHEN 'payment' THEN 'already_known' ELSE 'not_found' END) AS finding,
    CASE WHEN note.env IS NULL AND subject_kind = 'payment' THEN subject_id ELSE payment_id END AS payment_id,
    COALESCE(is_timed, true) AS is_timed, COALESCE(is_of_till, false) AS is_of_till, is_to_us, zone, asked_at,
    answered_at, COALESCE(note.created_at, occurred_at) AS created_at,
    CASE WHEN note.env IS NULL THEN occurred_at ELSE settled_at END AS settled_at, set_aside_at, set_aside_by,
    set_aside_reason
FROM transaction JOIN receiver USING (receiver_id) LEFT JOIN statement_note AS note USING (transaction_id);
