CREATE TABLE pull_registration (
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    response_code text NOT NULL,
    response_desc text NOT NULL,
    registered_at timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, env, shortcode)
);

-- One reading of one window of a statement. One run at a time: of a receiver in live, of a merchant in the sandbox,
-- where merchants share numbers.
CREATE TABLE reconciliation_run (
    run_id uuid PRIMARY KEY CHECK (has_prefix(run_id, 'run')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    cause text NOT NULL CHECK (cause IN ('cron', 'manual')),
    window_start timestamptz NOT NULL,
    window_end timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'failed')),
    lease_until timestamptz,
    pages integer NOT NULL DEFAULT 0,
    lines integer NOT NULL DEFAULT 0,
    malformed integer NOT NULL DEFAULT 0,
    already_known integer NOT NULL DEFAULT 0,
    recovered integer NOT NULL DEFAULT 0,
    not_found integer NOT NULL DEFAULT 0,
    mismatched integer NOT NULL DEFAULT 0,
    ambiguous integer NOT NULL DEFAULT 0,
    error text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    receiver_id uuid NOT NULL REFERENCES receiver,
    CONSTRAINT reconciliation_run_check CHECK (window_start < window_end),
    CONSTRAINT reconciliation_run_check1 CHECK ((status = 'running') = (finished_at IS NULL)),
    CONSTRAINT reconciliation_run_check2 CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CONSTRAINT reconciliation_run_check3 CHECK ((status = 'failed') = (error IS NOT NULL)),
    CONSTRAINT reconciliation_run_counts_check
        CHECK (LEAST(pages, lines, malformed, already_known, recovered, not_found, mismatched, ambiguous) >= 0
        AND (((((already_known + recovered) + not_found) + mismatched) + ambiguous) <= lines))
);
CREATE INDEX reconciliation_run_reached_by_cron ON reconciliation_run (merchant_id, env, shortcode, window_end DESC)
    WHERE status = 'completed' AND cause = 'cron';
CREATE UNIQUE INDEX reconciliation_run_one_at_a_time ON reconciliation_run (receiver_id, (CASE env
    WHEN 'live' THEN receiver_id ELSE merchant_id END)) WHERE status = 'running';
CREATE INDEX reconciliation_run_merchant ON reconciliation_run (merchant_id, env, run_id);
CREATE INDEX reconciliation_run_newest ON reconciliation_run (receiver_id, merchant_id, run_id);

-- Facts of a statement line beyond its transaction. A line has a row if it was unexplained when it was read, or states
-- another amount or time. payer is from M-Pesa's answer to a status query. receiver_id is the transaction's, which never
-- changes.
CREATE TABLE statement_note (
    transaction_id uuid PRIMARY KEY REFERENCES transaction,
    receiver_id uuid NOT NULL REFERENCES receiver,
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    moments timestamptz[] NOT NULL CHECK (cardinality(moments) BETWEEN 1 AND 2),
    amount integer CHECK (amount >= 0),
    amount_text text NOT NULL,
    payer text,
    finding text NOT NULL DEFAULT 'new'
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    payment_id uuid REFERENCES payment,
    is_timed boolean NOT NULL,
    is_of_till boolean NOT NULL,
    is_to_us boolean,
    zone text CHECK (zone IN ('eat', 'utc')),
    asked_at timestamptz,
    answered_at timestamptz,
    created_at timestamptz NOT NULL,
    settled_at timestamptz,
    dismissed_at timestamptz,
    dismissed_by text,
    dismissal_reason text,
    CONSTRAINT statement_note_payment_where_found
        CHECK ((payment_id IS NOT NULL) = (finding IN ('already_known', 'recovered', 'mismatched'))),
    CONSTRAINT statement_note_settled_with_its_payment CHECK ((settled_at IS NULL) = (payment_id IS NULL)),
    CONSTRAINT statement_note_dismissed_says_why CHECK (
        num_nulls(dismissed_at, dismissed_by, dismissal_reason) IN (0, 3) AND dismissal_reason <> '')
);
-- Listed by the time of payment.
CREATE INDEX statement_note_unresolved ON statement_note (merchant_id, env, (moments[1]), transaction_id)
    WHERE finding IN ('not_found', 'mismatched', 'ambiguous') AND dismissed_at IS NULL;
CREATE INDEX statement_note_payment ON statement_note (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX statement_note_payer ON statement_note (merchant_id, payer) WHERE payment_id IS NULL AND payer IS NOT NULL;
CREATE INDEX statement_note_zone ON statement_note (receiver_id, transaction_id) WHERE zone IS NOT NULL;
CREATE TRIGGER statement_note_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON statement_note
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL) EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');

CREATE TABLE reconciliation_line (
    run_id uuid NOT NULL REFERENCES reconciliation_run,
    transaction_id uuid NOT NULL REFERENCES transaction,
    finding text NOT NULL
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    PRIMARY KEY (run_id, transaction_id)
);
CREATE INDEX reconciliation_line_finding ON reconciliation_line (run_id, finding, transaction_id);
-- A note is deleted when no run has its line any more.
CREATE INDEX reconciliation_line_transaction ON reconciliation_line (transaction_id);

-- Lines with a note, for runs, pages and the judge. finding is the note's. is_known: the money has a subject or was returned
-- in full, whichever report found it and when, so no line of it needs review. A mismatched line of its own subject is a contradiction.
CREATE VIEW noted_line AS
SELECT note.transaction_id AS line_id, note.merchant_id, note.env, receiver.number AS shortcode, receipt, moments,
    moments[1] AS paid_at, amount, amount_text, COALESCE(note.payer, transaction.payer) AS phone, account_number AS reference, transaction.kind, finding,
    payment_id, is_timed, is_of_till, is_to_us, zone, asked_at, answered_at, note.created_at, settled_at, dismissed_at,
    dismissed_by, dismissal_reason,
    is_settled AND (finding <> 'mismatched' OR subject_id IS DISTINCT FROM payment_id) AS is_known
FROM transaction JOIN receiver USING (receiver_id) JOIN statement_note AS note USING (transaction_id);

-- All lines: those of transactions without a note have the facts of their first report. Lines of money that has a
-- subject are already known, and belong to its merchant.
CREATE VIEW statement AS
SELECT transaction_id AS line_id,
    CASE WHEN is_known THEN transaction.merchant_id ELSE COALESCE(note.merchant_id, transaction.merchant_id) END
        AS merchant_id,
    COALESCE(note.env, transaction.env) AS env, receiver.number AS shortcode, receipt,
    COALESCE(moments, ARRAY[occurred_at]) AS moments, COALESCE(moments[1], occurred_at) AS paid_at,
    CASE WHEN note.env IS NULL THEN (amount_cents / 100)::integer ELSE amount END AS amount,
    COALESCE(amount_text, (amount_cents / 100) || '.00') AS amount_text,
    COALESCE(note.payer, transaction.payer) AS phone, account_number AS reference, transaction.kind,
    CASE WHEN is_known AND finding IS DISTINCT FROM 'recovered' THEN 'already_known'
        ELSE COALESCE(finding, 'not_found') END AS finding,
    CASE WHEN subject_kind = 'payment' THEN subject_id
        WHEN is_known AND finding = 'mismatched' THEN NULL ELSE payment_id END AS payment_id,
    COALESCE(is_timed, true) AS is_timed, COALESCE(is_of_till, false) AS is_of_till, is_to_us, zone, asked_at,
    answered_at, COALESCE(note.created_at, occurred_at) AS created_at,
    CASE WHEN note.env IS NULL THEN occurred_at ELSE settled_at END AS settled_at, dismissed_at, dismissed_by,
    dismissal_reason
FROM transaction JOIN receiver USING (receiver_id) LEFT JOIN statement_note AS note USING (transaction_id)
    CROSS JOIN LATERAL (SELECT is_settled
        AND (finding IS DISTINCT FROM 'mismatched' OR subject_id IS DISTINCT FROM payment_id) AS is_known) AS allocated;
