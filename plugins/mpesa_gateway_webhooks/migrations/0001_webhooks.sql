CREATE TABLE webhook_endpoint (
    endpoint_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
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
    CHECK ((previous_secret IS NULL) = (previous_until IS NULL))
);
CREATE UNIQUE INDEX webhook_endpoint_active ON webhook_endpoint (merchant_id) WHERE is_active;

CREATE TABLE delivery (
    delivery_id text COLLATE "C" PRIMARY KEY,
    event_id text COLLATE "C" NOT NULL REFERENCES event,
    endpoint_id text COLLATE "C" NOT NULL REFERENCES webhook_endpoint,
    merchant_id text COLLATE "C" NOT NULL,
    event_type text NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead', 'cancelled')),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    tried integer NOT NULL DEFAULT 0 CHECK (tried >= 0),
    due_at timestamptz,
    leased_until timestamptz,
    last_attempt_at timestamptz,
    last_status integer,
    last_error text,
    created_at timestamptz NOT NULL,
    delivered_at timestamptz,
    UNIQUE (event_id, endpoint_id),
    CHECK ((status = 'pending') = (due_at IS NOT NULL)),
    CHECK (status <> 'delivered' OR delivered_at IS NOT NULL)
);
CREATE INDEX delivery_due ON delivery (due_at) WHERE status = 'pending';
CREATE INDEX delivery_owed ON delivery (endpoint_id, due_at) WHERE status = 'pending';
CREATE INDEX delivery_merchant ON delivery (merchant_id, created_at DESC, delivery_id DESC);
CREATE INDEX delivery_merchant_status ON delivery (merchant_id, status, created_at DESC, delivery_id DESC);
CREATE INDEX delivery_merchant_type ON delivery (merchant_id, event_type, created_at DESC, delivery_id DESC);
CREATE INDEX delivery_payment ON delivery (payment_id, created_at DESC, delivery_id DESC);

CREATE TABLE attempt (
    attempt_id text COLLATE "C" PRIMARY KEY,
    delivery_id text COLLATE "C" NOT NULL REFERENCES delivery,
    at timestamptz NOT NULL,
    status integer,
    ms integer,
    error text,
    answer text NOT NULL DEFAULT '' CHECK (length(answer) <= 1024),
    CHECK ((status IS NULL) = (error IS NOT NULL))
);
CREATE INDEX attempt_delivery ON attempt (delivery_id, at, attempt_id);
