-- An endpoint belongs to one merchant and env; one is active. event_types: NULL for all; a delivery of another type is
-- cancelled, and can be replayed. last_success_at is of the present url. address_id identifies its url: a new url gets a new number.
CREATE SEQUENCE webhook_address_number AS integer;
CREATE TABLE webhook_endpoint (
    endpoint_id uuid PRIMARY KEY CHECK (has_prefix(endpoint_id, 'whe')),
    address_id integer NOT NULL DEFAULT nextval('webhook_address_number') UNIQUE,
    merchant_id uuid NOT NULL REFERENCES merchant,
    url text NOT NULL CHECK (length(url) <= 2048),
    secret text NOT NULL,
    previous_secret text,
    previous_until timestamptz,
    is_active boolean NOT NULL DEFAULT true,
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    closed_until timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    event_types text[],
    CONSTRAINT webhook_endpoint_event_types_are_named
        CHECK (cardinality(event_types) > 0 AND array_position(event_types, NULL) IS NULL),
    CONSTRAINT webhook_endpoint_check CHECK ((previous_secret IS NULL) = (previous_until IS NULL)),
    CONSTRAINT webhook_endpoint_secrets_are_sealed CHECK (secret LIKE 'v1.%'
        AND COALESCE(previous_secret LIKE 'v1.%', true)),
    CONSTRAINT webhook_endpoint_url_is_web CHECK (url ~ '^https?://'),
    CONSTRAINT webhook_endpoint_of_its_env UNIQUE (endpoint_id, env)
);
CREATE UNIQUE INDEX webhook_endpoint_active ON webhook_endpoint (merchant_id, env) WHERE is_active;

-- The former urls of endpoints. The attempts at them refer to these rows.
CREATE TABLE webhook_former_address (
    address_id integer PRIMARY KEY,
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoint,
    url text NOT NULL
);
CREATE FUNCTION keep_webhook_address() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO webhook_former_address (address_id, endpoint_id, url) VALUES (OLD.address_id, OLD.endpoint_id, OLD.url);
    NEW.address_id := nextval('webhook_address_number');
    NEW.last_success_at := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER webhook_endpoint_address_kept BEFORE UPDATE OF url ON webhook_endpoint
    FOR EACH ROW WHEN (OLD.url IS DISTINCT FROM NEW.url)
    EXECUTE FUNCTION keep_webhook_address();

CREATE VIEW webhook_address AS
SELECT address_id, url FROM webhook_endpoint
UNION ALL
SELECT address_id, url FROM webhook_former_address;

-- The delivery of an event to an endpoint. It waits while its merchant has no endpoint in its env. A delivery that was
-- accepted at its first attempt has no row in attempt: last_attempt_at and last_status are of that attempt, with
-- address_id, ms and answer, which is NULL if it was empty. Columns of 8 bytes come before those of 4 and texts, so
-- that no row has padding.
CREATE TABLE delivery (
    delivery_id uuid PRIMARY KEY CHECK (has_prefix(delivery_id, 'dlv')),
    event_id uuid NOT NULL REFERENCES event,
    merchant_id uuid NOT NULL CHECK (is_id(merchant_id)),
    payment_id uuid NOT NULL CHECK (is_id(payment_id)),
    created_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    tried integer NOT NULL DEFAULT 0 CHECK (tried >= 0),
    last_attempt_at timestamptz,
    delivered_at timestamptz,
    due_at timestamptz,
    leased_until timestamptz,
    endpoint_id uuid,
    last_status integer,
    address_id integer,
    ms integer CHECK (ms >= 0),
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    event_type text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('waiting', 'pending', 'delivered', 'dead', 'cancelled')),
    last_error text,
    answer text,
    CONSTRAINT delivery_answer_of_its_attempt
        CHECK (answer IS NULL OR (ms IS NOT NULL AND length(answer) BETWEEN 1 AND 1024)),
    CONSTRAINT delivery_address_of_its_attempt CHECK ((address_id IS NULL) = (ms IS NULL)),
    CONSTRAINT delivery_check CHECK ((status = 'pending') = (due_at IS NOT NULL)),
    CONSTRAINT delivery_leased_while_pending CHECK (leased_until IS NULL OR status = 'pending'),
    CONSTRAINT delivery_pending_to_an_endpoint CHECK (status <> 'pending' OR endpoint_id IS NOT NULL),
    CONSTRAINT delivery_was_taken CHECK (((status = 'delivered') = (delivered_at IS NOT NULL))
        AND (status <> 'delivered' OR ((last_status BETWEEN 200 AND 299)))),
    CONSTRAINT delivery_endpoint_of_its_env
        FOREIGN KEY (endpoint_id, env) REFERENCES webhook_endpoint(endpoint_id, env),
    UNIQUE (event_id, endpoint_id)
);
CREATE INDEX delivery_due ON delivery (due_at) WHERE status = 'pending';
CREATE INDEX delivery_owed ON delivery (endpoint_id, due_at) WHERE status = 'pending';
CREATE INDEX delivery_merchant ON delivery (merchant_id, env, delivery_id);
CREATE INDEX delivery_merchant_status ON delivery (merchant_id, env, status, delivery_id);
CREATE INDEX delivery_merchant_type ON delivery (merchant_id, env, event_type, delivery_id);
CREATE INDEX delivery_waiting ON delivery (merchant_id, env, delivery_id) WHERE status = 'waiting';
CREATE INDEX delivery_answered ON delivery (delivery_id) WHERE answer IS NOT NULL;

-- The attempts at a delivery, with the first KB of each response.
CREATE TABLE attempt (
    attempt_id uuid PRIMARY KEY CHECK (has_prefix(attempt_id, 'att')),
    delivery_id uuid NOT NULL REFERENCES delivery,
    at timestamptz NOT NULL,
    address_id integer NOT NULL,
    status integer,
    ms integer CHECK (ms >= 0),
    error text,
    answer text NOT NULL DEFAULT '' CHECK (length(answer) <= 1024),
    CONSTRAINT attempt_check CHECK ((status IS NULL) = (error IS NOT NULL))
);
CREATE INDEX attempt_delivery ON attempt (delivery_id, attempt_id);

-- The id of an attempt without a row: the time of the attempt, the prefix att and the delivery's random part.
CREATE FUNCTION attempt_id_of(delivery_id uuid, at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '0694'
        || right(delivery_id::text, 17))::uuid
$$;

-- All attempts, with a row or without.
CREATE VIEW attempt_log AS
SELECT attempt_id, delivery_id, at, address_id, status, ms, error, answer FROM attempt
UNION ALL
SELECT attempt_id_of(delivery_id, last_attempt_at), delivery_id, last_attempt_at, address_id, last_status, ms, NULL,
    COALESCE(answer, '')
FROM delivery WHERE ms IS NOT NULL;

CREATE TRIGGER webhook_endpoint_stays_in_its_env AFTER UPDATE OF merchant_id, env ON webhook_endpoint
    FOR EACH ROW WHEN (OLD.merchant_id IS DISTINCT FROM NEW.merchant_id OR OLD.env IS DISTINCT FROM NEW.env)
    EXECUTE FUNCTION refuse_rewriting('whose endpoint it is', 'set another one');
