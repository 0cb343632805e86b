-- The addresses that Safaricom calls for a receiver. The token is permanent: live takes one registration. merchant_id is
-- the merchant that registered last. attempted_at: a registration is in flight, or its process has crashed.
CREATE TABLE c2b_address (
    receiver_id uuid PRIMARY KEY,
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    token text NOT NULL CHECK (token LIKE 'v1.%'),
    token_digest bytea NOT NULL UNIQUE CHECK (length(token_digest) = 32),
    state text NOT NULL DEFAULT 'unknown'
        CHECK (state IN ('unknown', 'registered', 'already_registered', 'refused', 'removed')),
    version text CHECK (version IN ('v1', 'v2')),
    response_type text NOT NULL CHECK (response_type IN ('Completed', 'Cancelled')),
    validation text NOT NULL CHECK (validation IN ('accept', 'rules')),
    attempt integer NOT NULL DEFAULT 0,
    attempted_at timestamptz,
    answered_at timestamptz,
    answer_code text,
    answer_text text,
    registered_at timestamptz,
    created_at timestamptz NOT NULL,
    CONSTRAINT c2b_address_registered_when CHECK (state <> 'registered' OR registered_at IS NOT NULL),
    FOREIGN KEY (receiver_id, env) REFERENCES receiver (receiver_id, env)
);
CREATE TRIGGER c2b_address_is_permanent AFTER UPDATE OF receiver_id, env, token_digest ON c2b_address
    FOR EACH ROW WHEN ((OLD.receiver_id, OLD.env, OLD.token_digest)
        IS DISTINCT FROM (NEW.receiver_id, NEW.env, NEW.token_digest))
    EXECUTE FUNCTION refuse_rewriting('an address', 'Safaricom has it registered');
CREATE TRIGGER c2b_address_not_deleted BEFORE DELETE ON c2b_address
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
