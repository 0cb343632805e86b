-- An endpoint belongs to one merchant and env; one is active.
CREATE TABLE webhook_endpoint (
    endpoint_id uuid PRIMARY KEY CHECK (has_prefix(endpoint_id, 'whe')),
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
    CONSTRAINT webhook_endpoint_check CHECK ((previous_secret IS NULL) = (previous_until IS NULL)),
    CONSTRAINT webhook_endpoint_secrets_are_sealed CHECK (secret LIKE 'v1.%'
        AND COALESCE(previous_secret LIKE 'v1.%', true)),
    CONSTRAINT webhook_endpoint_url_is_web CHECK (url ~ '^https?://'),
    CONSTRAINT webhook_endpoint_of_its_env UNIQUE (endpoint_id, env)
);
CREATE UNIQUE INDEX webhook_endpoint_active ON webhook_endpoint (merchant_id, env) WHERE is_active;

-- An event on its way to an endpoint. It waits while its merchant has no endpoint in its env.
CREATE TABLE delivery (
    delivery_id uuid PRIMARY KEY CHECK (has_prefix(delivery_id, 'dlv')),
    event_id uuid NOT NULL REFERENCES event,
    endpoint_id uuid,
    merchant_id uuid NOT NULL CHECK (is_id(merchant_id)),
    event_type text NOT NULL,
    payment_id uuid NOT NULL CHECK (is_id(payment_id)),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('waiting', 'pending', 'delivered', 'dead', 'cancelled')),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    tried integer NOT NULL DEFAULT 0 CHECK (tried >= 0),
    due_at timestamptz,
    leased_until timestamptz,
    last_attempt_at timestamptz,
    last_status integer,
    last_error text,
    created_at timestamptz NOT NULL,
    delivered_at timestamptz,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
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
CREATE INDEX delivery_payment ON delivery (payment_id, delivery_id);
CREATE INDEX delivery_waiting ON delivery (merchant_id, env, delivery_id) WHERE status = 'waiting';

-- The attempts at a delivery, with the first KB of what was answered.
CREATE TABLE attempt (
    attempt_id uuid PRIMARY KEY CHECK (has_prefix(attempt_id, 'att')),
    delivery_id uuid NOT NULL REFERENCES delivery,
    at timestamptz NOT NULL,
    status integer,
    ms integer CHECK (ms >= 0),
    error text,
    answer text NOT NULL DEFAULT '' CHECK (length(answer) <= 1024),
    CONSTRAINT attempt_check CHECK ((status IS NULL) = (error IS NOT NULL))
);
CREATE INDEX attempt_delivery ON attempt (delivery_id, attempt_id);

CREATE TRIGGER webhook_endpoint_stays_in_its_env AFTER UPDATE OF merchant_id, env ON webhook_endpoint
    FOR EACH ROW WHEN (OLD.merchant_id IS DISTINCT FROM NEW.merchant_id OR OLD.env IS DISTINCT FROM NEW.env)
    EXECUTE FUNCTION refuse_rewriting('whose endpoint it is', 'set another one');
