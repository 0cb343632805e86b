CREATE TABLE pull_registration (
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    response_code text NOT NULL,
    response_desc text NOT NULL,
    registered_at timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, env, shortcode)
);

CREATE TABLE reconciliation_run (
    run_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
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
    CHECK (window_start < window_end),
    CHECK ((status = 'running') = (finished_at IS NULL)),
    CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CHECK ((status = 'failed') = (error IS NOT NULL))
);
CREATE UNIQUE INDEX reconciliation_run_one_at_a_time ON reconciliation_run (merchant_id) WHERE status = 'running';
CREATE INDEX reconciliation_run_merchant ON reconciliation_run (merchant_id, started_at DESC, run_id DESC);
CREATE INDEX reconciliation_run_reached ON reconciliation_run (merchant_id, window_end DESC) WHERE status = 'completed';

CREATE TABLE statement_line (
    line_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    receipt text COLLATE "C" NOT NULL,
    moments timestamptz[] NOT NULL CHECK (cardinality(moments) BETWEEN 1 AND 2),
    amount integer,
    amount_text text NOT NULL,
    phone text,
    reference text,
    kind text,
    organisation text,
    finding text NOT NULL DEFAULT 'new'
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    payment_id text COLLATE "C" REFERENCES payment,
    check_id text COLLATE "C",
    created_at timestamptz NOT NULL,
    settled_at timestamptz,
    CHECK ((payment_id IS NOT NULL) = (finding IN ('already_known', 'recovered', 'mismatched'))),
    UNIQUE (merchant_id, env, receipt)
);
CREATE INDEX statement_line_open ON statement_line (merchant_id, env, amount)
    WHERE finding IN ('new', 'not_found', 'ambiguous');
CREATE INDEX statement_line_payment ON statement_line (payment_id) WHERE payment_id IS NOT NULL;

CREATE TABLE reconciliation_line (
    run_id text COLLATE "C" NOT NULL REFERENCES reconciliation_run,
    line_id text COLLATE "C" NOT NULL REFERENCES statement_line,
    finding text NOT NULL
        CHECK (finding IN ('new', 'already_known', 'recovered', 'not_found', 'mismatched', 'ambiguous')),
    PRIMARY KEY (run_id, line_id)
);
CREATE INDEX reconciliation_line_finding ON reconciliation_line (run_id, finding, line_id);
