CREATE TABLE callback (
    callback_id text COLLATE "C" PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('stk')),
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    received_at timestamptz NOT NULL,
    source text NOT NULL,
    env text CHECK (env IN ('sandbox', 'live')),
    subject_id text COLLATE "C" NOT NULL,
    handle text NOT NULL,
    result_code text NOT NULL,
    body text NOT NULL,
    repeats integer NOT NULL DEFAULT 0,
    verdict text NOT NULL DEFAULT 'waiting' CHECK (verdict IN ('waiting', 'applied', 'unmatched')),
    applied_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    due_at timestamptz,
    CHECK ((verdict = 'applied') = (applied_at IS NOT NULL)),
    CHECK ((verdict = 'waiting') = (due_at IS NOT NULL)),
    UNIQUE (fingerprint)
);
CREATE INDEX callback_subject ON callback (subject_id, received_at) WHERE subject_id <> '';
CREATE INDEX callback_handle ON callback (handle, received_at) WHERE handle <> '';
CREATE INDEX callback_due ON callback (due_at) WHERE verdict = 'waiting';
CREATE INDEX callback_received ON callback (received_at DESC, callback_id DESC);

CREATE TABLE refused_callback (
    refused_id text COLLATE "C" PRIMARY KEY,
    kind text NOT NULL,
    at timestamptz NOT NULL,
    source text NOT NULL,
    reason text NOT NULL,
    body text NOT NULL CHECK (length(body) <= 2048)
);
CREATE INDEX refused_callback_at ON refused_callback (at DESC, refused_id DESC);
