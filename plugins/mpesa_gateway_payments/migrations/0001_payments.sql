CREATE TABLE payment (
    payment_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    provider text NOT NULL CHECK (provider IN ('mpesa')),
    shortcode text NOT NULL,
    amount integer NOT NULL CHECK (amount BETWEEN 1 AND 250000),
    currency text NOT NULL CHECK (currency IN ('KES')),
    phone text COLLATE "C" NOT NULL CHECK (phone ~ '^254[17][0-9]{8}$'),
    reference text COLLATE "C" NOT NULL CHECK (length(reference) BETWEEN 1 AND 12),
    reference_is_ours boolean NOT NULL,
    description text NOT NULL CHECK (length(description) <= 13),
    callback_url text,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    idempotency_key text NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'completed', 'failed', 'reversed', 'partially_reversed')),
    charge text NOT NULL DEFAULT 'sending' CHECK (charge IN ('sending', 'released', 'accepted', 'refused', 'unknown')),
    merchant_request_id text,
    checkout_request_id text COLLATE "C",
    receipt text COLLATE "C",
    result_code text,
    result_desc text,
    failure_reason text CHECK (failure_reason IN ('insufficient_funds', 'cancelled_by_user', 'wrong_pin', 'timeout',
        'unreachable', 'limit_exceeded', 'duplicate_in_progress', 'rejected_by_provider', 'expired', 'other')),
    mismatch text CHECK (mismatch IN ('amount', 'phone', 'receipt')),
    received_amount text,
    received_receipt text,
    received_phone text,
    asked integer NOT NULL DEFAULT 0,
    due_at timestamptz,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    completed_at timestamptz,
    CHECK ((status IN ('completed', 'reversed', 'partially_reversed')) = (completed_at IS NOT NULL)),
    CHECK ((status = 'failed') = (failure_reason IS NOT NULL)),
    CHECK (receipt IS NULL OR status IN ('completed', 'reversed', 'partially_reversed')),
    CHECK (status = 'pending' OR due_at IS NULL),
    CHECK (status <> 'pending' OR due_at IS NOT NULL OR mismatch IS NOT NULL),
    UNIQUE (merchant_id, idempotency_key)
);
CREATE UNIQUE INDEX payment_checkout_request_id ON payment (checkout_request_id) WHERE checkout_request_id IS NOT NULL;
CREATE UNIQUE INDEX payment_receipt ON payment (env, receipt) WHERE receipt IS NOT NULL;
CREATE UNIQUE INDEX payment_own_reference ON payment (reference) WHERE reference_is_ours;
CREATE INDEX payment_due ON payment (due_at) WHERE status = 'pending';
CREATE INDEX payment_merchant ON payment (merchant_id, created_at DESC, payment_id DESC);
CREATE INDEX payment_merchant_status ON payment (merchant_id, status, created_at DESC, payment_id DESC);
CREATE INDEX payment_merchant_phone ON payment (merchant_id, phone, created_at DESC, payment_id DESC);
CREATE INDEX payment_merchant_reference ON payment (merchant_id, reference, created_at DESC, payment_id DESC);
CREATE INDEX payment_merchant_amount ON payment (merchant_id, amount, created_at DESC, payment_id DESC);

CREATE TABLE payment_step (
    payment_id text COLLATE "C" NOT NULL REFERENCES payment,
    number bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('requested', 'sent', 'unsent', 'unknown', 'refused', 'completed', 'failed',
        'expired', 'mismatched', 'receipt_learnt', 'asked')),
    cause text NOT NULL CHECK (cause IN ('merchant', 'ack', 'fault', 'callback', 'stk_query', 'expiry')),
    result_code text,
    detail text NOT NULL,
    PRIMARY KEY (payment_id, number)
);
