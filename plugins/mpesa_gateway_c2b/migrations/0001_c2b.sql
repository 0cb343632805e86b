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

-- What payers type as account number at a receiver, as the merchant announced it. number is normalised. received_cents is
-- the sum of the entries.
CREATE TABLE account_number (
    account_id uuid PRIMARY KEY CHECK (has_prefix(account_id, 'acc')),
    receiver_id uuid NOT NULL,
    merchant_id uuid NOT NULL REFERENCES merchant,
    expected_cents bigint CHECK (expected_cents > 0),
    min_cents bigint CHECK (min_cents > 0),
    max_cents bigint CHECK (max_cents > 0),
    received_cents bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    is_active boolean NOT NULL,
    number text COLLATE "C" NOT NULL CHECK (length(number) BETWEEN 1 AND 20 AND number = upper(number)),
    CONSTRAINT account_number_bounds CHECK (min_cents <= max_cents),
    FOREIGN KEY (receiver_id, env) REFERENCES receiver (receiver_id, env),
    CONSTRAINT account_number_is_once UNIQUE (receiver_id, merchant_id, number)
);
CREATE INDEX account_number_list ON account_number (merchant_id, env, account_id);
CREATE TRIGGER account_number_stays AFTER UPDATE OF account_id, receiver_id, merchant_id, env, number ON account_number
    FOR EACH ROW WHEN ((OLD.account_id, OLD.receiver_id, OLD.merchant_id, OLD.env, OLD.number)
        IS DISTINCT FROM (NEW.account_id, NEW.receiver_id, NEW.merchant_id, NEW.env, NEW.number))
    EXECUTE FUNCTION refuse_rewriting('an account number', 'make another one');

-- Money that counts to an account number: a transaction, a payment with the number as reference, or (negative) a refund.
CREATE TABLE account_entry (
    source_id uuid PRIMARY KEY CHECK (is_id(source_id)),
    account_id uuid NOT NULL REFERENCES account_number,
    amount_cents bigint NOT NULL CHECK (amount_cents <> 0),
    at timestamptz NOT NULL
);
CREATE INDEX account_entry_account ON account_entry (account_id, source_id);
CREATE TRIGGER account_entry_append_only BEFORE UPDATE OR DELETE ON account_entry
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER account_entry_never_emptied BEFORE TRUNCATE ON account_entry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
