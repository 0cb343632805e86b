CREATE TABLE gateway_secret (
    name text PRIMARY KEY,
    sealed text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE merchant (
    merchant_id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL CHECK (name <> ''),
    env text NOT NULL DEFAULT 'sandbox' CHECK (env IN ('sandbox', 'live')),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX merchant_live ON merchant (merchant_id) WHERE env = 'live';

CREATE TABLE api_key (
    key_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    name text NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_key_merchant ON api_key (merchant_id, created_at DESC, key_id DESC);

CREATE TABLE idempotency_key (
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    state text NOT NULL CHECK (state IN ('in_flight', 'released', 'settled')),
    subject_id text COLLATE "C" NOT NULL,
    leased_until timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, key)
);

CREATE TABLE event (
    event_id text COLLATE "C" PRIMARY KEY,
    kind text NOT NULL,
    merchant_id text COLLATE "C" REFERENCES merchant,
    subject_id text COLLATE "C" NOT NULL,
    occurred_at timestamptz NOT NULL,
    is_public boolean NOT NULL,
    payload jsonb NOT NULL,
    body text,
    CHECK (is_public = (body IS NOT NULL)),
    CHECK (merchant_id IS NOT NULL OR NOT is_public)
);
CREATE INDEX event_merchant ON event (merchant_id, occurred_at DESC, event_id DESC) WHERE is_public;
CREATE INDEX event_merchant_kind ON event (merchant_id, kind, occurred_at DESC, event_id DESC) WHERE is_public;
CREATE INDEX event_subject ON event (subject_id, occurred_at);

CREATE TABLE event_task (
    event_id text COLLATE "C" NOT NULL REFERENCES event,
    subscriber text NOT NULL,
    due_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    leased_until timestamptz,
    last_error text,
    done_at timestamptz,
    PRIMARY KEY (event_id, subscriber)
);
CREATE INDEX event_task_due ON event_task (due_at) WHERE done_at IS NULL;

CREATE TABLE audit_entry (
    number bigint PRIMARY KEY,
    entry_id text COLLATE "C" NOT NULL UNIQUE,
    at timestamptz NOT NULL,
    merchant_id text COLLATE "C",
    actor text NOT NULL,
    action text NOT NULL,
    subject_id text COLLATE "C",
    detail text NOT NULL,
    previous_digest bytea NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32)
);
CREATE INDEX audit_entry_merchant ON audit_entry (merchant_id, number DESC);
