-- What the overview draws, counted beside the payments: 1,000,000 of them are not read for each look.
CREATE TABLE payment_tally (
    hour timestamptz NOT NULL CHECK (hour = date_trunc('hour', hour, 'UTC')),
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    asked integer NOT NULL,
    paid integer NOT NULL,
    failed integer NOT NULL,
    taken bigint NOT NULL,
    returned bigint NOT NULL,
    reasons jsonb NOT NULL CHECK (jsonb_typeof(reasons) = 'object'),
    waits integer[] NOT NULL CHECK (cardinality(waits) = 6),
    counted_at timestamptz NOT NULL,
    PRIMARY KEY (hour, merchant_id, env),
    CHECK (paid + failed <= asked)
);
CREATE INDEX payment_tally_counted ON payment_tally (counted_at DESC);
-- Steps are written in the order of their times: this finds the last ones, and costs next to nothing to keep.
CREATE INDEX payment_step_at ON payment_step USING brin (at) WITH (autosummarize = on, pages_per_range = 16);
