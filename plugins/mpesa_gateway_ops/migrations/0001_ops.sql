CREATE TABLE ops_operator (
    operator_id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 64 AND name = lower(name)),
    password_hash text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    last_login_at timestamptz
);

CREATE TABLE ops_session (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    operator_id text COLLATE "C" NOT NULL REFERENCES ops_operator,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX ops_session_operator ON ops_session (operator_id);
CREATE INDEX ops_session_expiry ON ops_session (expires_at);
