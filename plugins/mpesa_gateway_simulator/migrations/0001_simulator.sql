CREATE TABLE sim_token (
    consumer_key text PRIMARY KEY,
    token text NOT NULL UNIQUE,
    expires_at timestamptz NOT NULL
);

CREATE TABLE sim_push (
    checkout_request_id text PRIMARY KEY,
    merchant_request_id text NOT NULL UNIQUE,
    shortcode text NOT NULL,
    receiver text NOT NULL,
    phone text NOT NULL,
    amount integer NOT NULL CHECK (amount BETWEEN 1 AND 250000),
    reference text NOT NULL,
    description text NOT NULL,
    callback_url text NOT NULL,
    behaviour text NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'ended')),
    result_code text,
    receipt text,
    created_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    ended_at timestamptz,
    CHECK ((state = 'ended') = (result_code IS NOT NULL)),
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
);
CREATE INDEX sim_push_due ON sim_push (ends_at) WHERE state = 'open';
CREATE INDEX sim_push_phone ON sim_push (phone, created_at DESC);
CREATE INDEX sim_push_created ON sim_push (created_at DESC);

CREATE TABLE sim_callback (
    callback_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    checkout_request_id text NOT NULL REFERENCES sim_push ON DELETE CASCADE,
    body text NOT NULL,
    due_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    last_status integer,
    answered_at timestamptz
);
CREATE INDEX sim_callback_due ON sim_callback (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX sim_callback_push ON sim_callback (checkout_request_id);

CREATE TABLE sim_transaction (
    receipt text PRIMARY KEY CHECK (receipt ~ '^[A-Z0-9]{10}$'),
    checkout_request_id text NOT NULL UNIQUE,
    phone text NOT NULL,
    amount integer NOT NULL CHECK (amount > 0),
    shortcode text NOT NULL,
    reference text NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX sim_transaction_at ON sim_transaction (at DESC);

CREATE TABLE sim_fault (
    operation text PRIMARY KEY CHECK (operation IN ('oauth', 'stkpush', 'stkquery')),
    fault text NOT NULL,
    remaining integer NOT NULL CHECK (remaining >= 0)
);

CREATE TABLE sim_knob (
    name text PRIMARY KEY,
    value double precision NOT NULL
);
