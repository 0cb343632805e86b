CREATE TABLE pull_registration (
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    response_code text NOT NULL,
    response_desc text NOT NULL,
    registered_at timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, env, shortcode)
);

-- A reading of one window of a statement. In live one run at a time of a receiver; in the sandbox, whose numbers
-- merchants share without knowing of each other, one of a merchant.
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

CREATE TABLE statement_line (
    line_id uuid PRIMARY KEY CHECK (has_prefix(line_id, 'lin')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    receipt text COLLATE "C" NOT NULL CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    moments timestamptz[] NOT NULL CHECK (cardinality(moments) BETWEEN 1 AND 2),
    amount integer CHECK (amount >= 0),
    amount_text text NOT NULL,
    phone text,
    reference text,
    kind text,
    organisation text,
    finding text NOT NULL DEFAULT 'new'
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    payment_id uuid REFERENCES payment,
    check_id uuid CHECK (is_id(check_id)),
    created_at timestamptz NOT NULL,
    settled_at timestamptz,
    set_aside_at timestamptz,
    set_aside_by text,
    set_aside_reason text,
    asked_at timestamptz,
    is_timed boolean NOT NULL DEFAULT true,
    zone text CHECK (zone IN ('eat', 'utc')),
    answered_at timestamptz,
    is_to_us boolean,
    is_of_till boolean NOT NULL DEFAULT false,
    CONSTRAINT statement_line_check
        CHECK ((payment_id IS NOT NULL) = (finding IN ('already_known', 'recovered', 'mismatched'))),
    CONSTRAINT statement_line_set_aside_says_why
        CHECK ((num_nulls(set_aside_at, set_aside_by, set_aside_reason) IN (0, 3)) AND set_aside_reason <> ''),
    CONSTRAINT statement_line_settled_with_its_payment CHECK ((settled_at IS NULL) = (payment_id IS NULL)),
    UNIQUE (merchant_id, env, receipt)
);
CREATE INDEX statement_line_payment ON statement_line (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX statement_line_phone ON statement_line (merchant_id, phone) WHERE payment_id IS NULL AND phone IS NOT NULL;
CREATE INDEX statement_line_zone ON statement_line (env, shortcode, line_id DESC) WHERE zone IS NOT NULL;
CREATE INDEX statement_line_unallocated ON statement_line (env, shortcode, amount, created_at)
    WHERE finding IN ('new', 'not_found', 'ambiguous') AND set_aside_at IS NULL;
CREATE INDEX statement_line_unresolved ON statement_line (merchant_id, env, line_id)
    WHERE finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL;

CREATE TABLE reconciliation_line (
    run_id uuid NOT NULL REFERENCES reconciliation_run,
    line_id uuid NOT NULL REFERENCES statement_line,
    finding text NOT NULL
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    PRIMARY KEY (run_id, line_id)
);
CREATE INDEX reconciliation_line_finding ON reconciliation_line (run_id, finding, line_id);
CREATE INDEX reconciliation_line_line ON reconciliation_line (line_id);

CREATE TRIGGER statement_line_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON statement_line
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL)
    EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');
