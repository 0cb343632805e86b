-- A number that payers pay. In live it belongs to one merchant.
CREATE TABLE receiver (
    receiver_id uuid PRIMARY KEY CHECK (has_prefix(receiver_id, 'rcv')),
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    number text COLLATE "C" NOT NULL CHECK (number ~ '^[0-9]{5,7}$'),
    kind text NOT NULL CHECK (kind IN ('paybill', 'till')),
    owner_id uuid REFERENCES merchant,
    created_at timestamptz NOT NULL,
    CONSTRAINT receiver_sandbox_has_no_owner CHECK (env = 'live' OR owner_id IS NULL),
    UNIQUE (env, number),
    UNIQUE (receiver_id, env)
);

-- A merchant's right to one receiver, with sealed credentials. Payments and refunds refer to it, so it is never deleted.
CREATE TABLE shortcode (
    shortcode_id uuid PRIMARY KEY CHECK (has_prefix(shortcode_id, 'shc')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    provider text NOT NULL DEFAULT 'mpesa' CHECK (provider = 'mpesa'),
    receiver_id uuid NOT NULL,
    store_number text CHECK (store_number ~ '^[0-9]{5,7}$'),
    name text CHECK (length(name) BETWEEN 1 AND 100),
    consumer_key text,
    consumer_secret text,
    passkey text,
    initiator text,
    security_credential text,
    result_url text,
    timeout_url text,
    nominated_number text CHECK (nominated_number ~ '^254[17][0-9]{8}$'),
    account_reference text CHECK (length(account_reference) BETWEEN 1 AND 12),
    is_default boolean NOT NULL,
    is_allowed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    retired_at timestamptz,
    wiped_at timestamptz,
    verified_at timestamptz,
    CONSTRAINT shortcode_initiator_is_whole CHECK ((initiator IS NULL) = (security_credential IS NULL)),
    CONSTRAINT shortcode_is_sealed CHECK (consumer_key LIKE 'v1.%' AND consumer_secret LIKE 'v1.%'
        AND passkey LIKE 'v1.%' AND security_credential LIKE 'v1.%'),
    CONSTRAINT shortcode_retired_is_no_default CHECK (retired_at IS NULL OR NOT is_default),
    CONSTRAINT shortcode_secrets_until_wiped CHECK ( CASE
        WHEN wiped_at IS NULL THEN num_nulls(consumer_key, consumer_secret, passkey) = 0
        ELSE num_nonnulls(consumer_key, consumer_secret, passkey, security_credential) = 0 END),
    CONSTRAINT shortcode_wiped_after_retired CHECK (wiped_at IS NULL OR retired_at IS NOT NULL),
    FOREIGN KEY (receiver_id, env) REFERENCES receiver(receiver_id, env),
    UNIQUE (merchant_id, receiver_id)
);
CREATE UNIQUE INDEX shortcode_default ON shortcode (merchant_id, env) WHERE is_default AND retired_at IS NULL;
CREATE INDEX shortcode_receiver ON shortcode (receiver_id);
CREATE INDEX shortcode_to_wipe ON shortcode (retired_at) WHERE retired_at IS NOT NULL AND wiped_at IS NULL;

-- All store numbers that credentials of a till have stated. M-Pesa names a till by its store's number, which several tills
-- may share; money of a former number stays the till's, as far as its merchant has stated it.
CREATE TABLE store_number (
    env text NOT NULL,
    number text COLLATE "C" NOT NULL,
    receiver_id uuid NOT NULL,
    merchant_id uuid NOT NULL REFERENCES merchant,
    noted_at timestamptz NOT NULL,
    FOREIGN KEY (receiver_id, env) REFERENCES receiver (receiver_id, env),
    PRIMARY KEY (env, number, receiver_id, merchant_id)
);
CREATE INDEX store_number_receiver ON store_number (receiver_id);

CREATE FUNCTION note_store_number() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO store_number (env, number, receiver_id, merchant_id, noted_at)
    VALUES (NEW.env, NEW.store_number, NEW.receiver_id, NEW.merchant_id, NEW.updated_at)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER shortcode_store_number_kept AFTER INSERT OR UPDATE OF store_number ON shortcode
    FOR EACH ROW WHEN (NEW.store_number IS NOT NULL)
    EXECUTE FUNCTION note_store_number();
CREATE TRIGGER store_number_append_only BEFORE UPDATE OR DELETE ON store_number
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();

-- Processes cache a merchant's shortcodes by the merchant, and one shortcode by its id.
CREATE FUNCTION notify_shortcode() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_notify(TG_TABLE_SCHEMA || '_changed', 'credentials:' || id_text(NEW.merchant_id));
    PERFORM pg_notify(TG_TABLE_SCHEMA || '_changed', 'shortcode:' || id_text(NEW.shortcode_id));
    RETURN NULL;
END
$$;

CREATE TRIGGER receiver_notified AFTER UPDATE ON receiver
    FOR EACH ROW
    EXECUTE FUNCTION notify_change('receiver', 'receiver_id');

CREATE TRIGGER shortcode_is_of_one_receiver AFTER UPDATE OF merchant_id, env, receiver_id ON shortcode
    FOR EACH ROW WHEN (OLD.merchant_id IS DISTINCT FROM NEW.merchant_id OR OLD.env IS DISTINCT FROM NEW.env
    OR OLD.receiver_id IS DISTINCT FROM NEW.receiver_id)
    EXECUTE FUNCTION refuse_rewriting('whose receiver it is', 'make another shortcode');
CREATE TRIGGER shortcode_not_deleted BEFORE DELETE ON shortcode
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER shortcode_notified AFTER INSERT OR UPDATE ON shortcode
    FOR EACH ROW
    EXECUTE FUNCTION notify_shortcode();
