-- host_role: sees every merchant. totp_sealed: the confirmed second factor; totp_offered: one that is being set up.
-- totp_step: the 30-second step of the last accepted code. totp_failures: wrong codes since then.
CREATE TABLE person (
    person_id uuid PRIMARY KEY CHECK (has_prefix(person_id, 'per')),
    created_at timestamptz NOT NULL,
    last_login_at timestamptz,
    totp_step bigint NOT NULL DEFAULT 0,
    totp_failures integer NOT NULL DEFAULT 0,
    is_active boolean NOT NULL DEFAULT true,
    email text COLLATE "C" NOT NULL CHECK (
        (length(email) BETWEEN 3 AND 254) AND (email ~ '^[^@[:space:]A-Z]+@[^@[:space:]A-Z]+$')
    ) UNIQUE,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    password_hash text NOT NULL,
    host_role text CHECK (host_role IN ('viewer', 'operator', 'admin')),
    totp_sealed text,
    totp_offered text
);

CREATE TABLE membership (
    merchant_id uuid NOT NULL REFERENCES merchant,
    person_id uuid NOT NULL REFERENCES person,
    created_at timestamptz NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'manager', 'accountant', 'cashier', 'approver', 'viewer')),
    PRIMARY KEY (merchant_id, person_id)
);
CREATE INDEX membership_person ON membership (person_id);

-- A used invitation is deleted. merchant_id and role: a member to be; host_role: one of the host's people to be;
-- person_id: a new password for this person.
CREATE TABLE person_invitation (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    merchant_id uuid REFERENCES merchant,
    person_id uuid REFERENCES person,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    email text COLLATE "C" NOT NULL,
    role text CHECK (role IN ('owner', 'manager', 'accountant', 'cashier', 'approver', 'viewer')),
    host_role text CHECK (host_role IN ('viewer', 'operator', 'admin')),
    invited_by text NOT NULL,
    CHECK (num_nonnulls(merchant_id, host_role, person_id) = 1),
    CHECK ((merchant_id IS NULL) = (role IS NULL))
);
CREATE INDEX person_invitation_merchant ON person_invitation (merchant_id, email);
CREATE INDEX person_invitation_expiry ON person_invitation (expires_at);

CREATE TABLE person_recovery_code (
    person_id uuid NOT NULL REFERENCES person,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (person_id, digest)
);

-- verified_at: the last second factor. merchant_id: the merchant that a member has chosen.
CREATE TABLE ops_session (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    person_id uuid NOT NULL REFERENCES person,
    merchant_id uuid CHECK (has_prefix(merchant_id, 'mer')),
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    verified_at timestamptz,
    agent text NOT NULL DEFAULT '' CHECK (length(agent) <= 200)
);
CREATE INDEX ops_session_person ON ops_session (person_id);
CREATE INDEX ops_session_expiry ON ops_session (expires_at);

-- The result of an action, shown once on the next page.
CREATE TABLE ops_note (
    note_id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    sealed text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX ops_note_created ON ops_note (created_at);

-- The lock makes two removals wait for each other, so that the second one sees the first.
CREATE FUNCTION refuse_merchant_without_owner() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM merchant WHERE merchant_id = OLD.merchant_id FOR NO KEY UPDATE;
    IF NOT EXISTS (SELECT FROM membership WHERE merchant_id = OLD.merchant_id AND role = 'owner') THEN
        RAISE EXCEPTION 'the last owner of a merchant stays its owner'
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER membership_keeps_an_owner AFTER DELETE OR UPDATE OF role, merchant_id ON membership
    FOR EACH ROW WHEN (OLD.role = 'owner')
    EXECUTE FUNCTION refuse_merchant_without_owner();
