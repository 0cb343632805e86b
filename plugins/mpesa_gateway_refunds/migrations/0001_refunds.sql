CREATE TABLE refund (
    refund_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    payment_id text COLLATE "C" NOT NULL REFERENCES payment,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    amount integer NOT NULL CHECK (amount > 0),
    payment_amount integer NOT NULL,
    receipt text COLLATE "C" NOT NULL,
    reason text NOT NULL DEFAULT '',
    idempotency_key text,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'completed', 'failed')),
    reversal text NOT NULL DEFAULT 'sending'
        CHECK (reversal IN ('sending', 'unsent', 'refused', 'accepted', 'unknown', 'verifying', 'ended')),
    originator_conversation_id text COLLATE "C",
    conversation_id text COLLATE "C",
    reversal_receipt text COLLATE "C",
    outcome text,
    result_code text,
    result_desc text,
    attention text,
    asked integer NOT NULL DEFAULT 0,
    due_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    completed_at timestamptz,
    CHECK (amount <= payment_amount),
    CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
    CHECK ((status = 'pending') = (outcome IS NULL)),
    CHECK (status = 'pending' OR due_at IS NULL),
    CHECK (status <> 'pending' OR due_at IS NOT NULL OR attention IS NOT NULL)
);
CREATE UNIQUE INDEX refund_idempotency_key ON refund (merchant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX refund_reversal_receipt ON refund (env, reversal_receipt)
    WHERE reversal_receipt IS NOT NULL AND status = 'completed';
CREATE INDEX refund_payment ON refund (payment_id, created_at DESC);
CREATE INDEX refund_merchant ON refund (merchant_id, created_at DESC, refund_id DESC);
CREATE INDEX refund_merchant_status ON refund (merchant_id, status, created_at DESC, refund_id DESC);
CREATE INDEX refund_due ON refund (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX refund_originator ON refund (originator_conversation_id) WHERE originator_conversation_id IS NOT NULL;
CREATE INDEX refund_conversation ON refund (conversation_id) WHERE conversation_id IS NOT NULL;
