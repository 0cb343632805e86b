CREATE TABLE ops_operator (
    operator_id uuid PRIMARY KEY CHECK (has_prefix(operator_id, 'opr')),
    name text COLLATE "C" NOT NULL CHECK ((length(name) BETWEEN 1 AND 64) AND (name = lower(name))) UNIQUE,
    password_hash text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    last_login_at timestamptz,
    role text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin'))
);

CREATE TABLE ops_session (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    operator_id uuid NOT NULL REFERENCES ops_operator,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX ops_session_operator ON ops_session (operator_id);
CREATE INDEX ops_session_expiry ON ops_session (expires_at);

-- The result of an action, shown once on the next page.
CREATE TABLE ops_note (
    note_id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    sealed text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX ops_note_created ON ops_note (created_at);
