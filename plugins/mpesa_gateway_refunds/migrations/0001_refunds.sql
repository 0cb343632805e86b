-- A refund is of a payment, or of a transaction that pays none; original_amount is its amount in whole KES. is_whole: a
-- refund of the whole remaining amount; each payment and transaction has at most one. attempt: an unsent refund can be sent
-- again under its key. reversal: ready is committed with the refund, sending immediately before the call.
CREATE TABLE refund (
    refund_id uuid PRIMARY KEY CHECK (has_prefix(refund_id, 'rfd')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    payment_id uuid REFERENCES payment,
    transaction_id uuid REFERENCES transaction,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    amount integer NOT NULL CHECK (amount > 0),
    original_amount integer NOT NULL,
    receipt text COLLATE "C" NOT NULL,
    reason text NOT NULL DEFAULT '',
    idempotency_key text,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'completed', 'failed')),
    reversal text NOT NULL DEFAULT 'sending'
        CHECK (reversal IN ('ready', 'sending', 'unsent', 'refused', 'accepted', 'unknown', 'verifying', 'ended')),
    originator_conversation_id text COLLATE "C",
    conversation_id text COLLATE "C",
    reversal_receipt text COLLATE "C",
    outcome text,
    result_code text,
    result_desc text,
    attention text,
    asked integer NOT NULL DEFAULT 0 CHECK (asked >= 0),
    due_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    completed_at timestamptz,
    advice text,
    shortcode text,
    shortcode_id uuid NOT NULL REFERENCES shortcode,
    is_whole boolean NOT NULL DEFAULT false,
    attempt integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
    CONSTRAINT refund_has_one_source CHECK (num_nonnulls(payment_id, transaction_id) = 1),
    CONSTRAINT refund_check CHECK (amount <= original_amount),
    CONSTRAINT refund_check1 CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
    CONSTRAINT refund_check2 CHECK ((status = 'pending') = (outcome IS NULL)),
    CONSTRAINT refund_check3 CHECK (status = 'pending' OR due_at IS NULL),
    CONSTRAINT refund_check4 CHECK (status <> 'pending' OR due_at IS NOT NULL OR attention IS NOT NULL),
    CONSTRAINT refund_outcome_fits_status CHECK ( CASE status WHEN 'pending' THEN outcome IS NULL
        WHEN 'completed' THEN outcome IN ('reversed', 'already_reversed')
        ELSE outcome NOT IN ('reversed', 'already_reversed') END),
    CONSTRAINT refund_receipt_check CHECK (receipt ~ '^[A-Z0-9]{6,20}$' AND reversal_receipt ~ '^[A-Z0-9]{6,20}$'),
    CONSTRAINT refund_reversal_fits_status CHECK ( CASE status
        WHEN 'pending' THEN reversal IN ('ready', 'sending', 'accepted', 'unknown', 'verifying')
        WHEN 'completed' THEN reversal = 'ended' ELSE reversal IN ('ended', 'unsent', 'refused') END),
    CONSTRAINT refund_reversal_receipt_is_of_money CHECK (reversal_receipt IS NULL OR status = 'completed')
);
CREATE UNIQUE INDEX refund_reversal_receipt ON refund (env, reversal_receipt)
    WHERE reversal_receipt IS NOT NULL AND status = 'completed';
CREATE INDEX refund_due ON refund (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX refund_originator ON refund (originator_conversation_id) WHERE originator_conversation_id IS NOT NULL;
CREATE INDEX refund_conversation ON refund (conversation_id) WHERE conversation_id IS NOT NULL;
CREATE UNIQUE INDEX refund_idempotency_key ON refund (merchant_id, env, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX refund_whole ON refund (payment_id) WHERE is_whole AND status <> 'failed';
CREATE UNIQUE INDEX refund_whole_of_transaction ON refund (transaction_id) WHERE is_whole AND status <> 'failed';
CREATE INDEX refund_transaction ON refund (transaction_id, refund_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX refund_payment ON refund (payment_id, refund_id);
CREATE INDEX refund_merchant ON refund (merchant_id, env, refund_id);
CREATE INDEX refund_merchant_status ON refund (merchant_id, env, status, refund_id);
CREATE INDEX refund_attention ON refund (merchant_id, env, refund_id) WHERE attention IS NOT NULL;

CREATE TRIGGER refund_moves AFTER UPDATE OF status ON refund
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND (NOT (OLD.status = 'pending' OR (OLD.status = 'failed'
    AND NEW.status = 'completed') OR (OLD.status = 'failed' AND NEW.status = 'pending' AND OLD.reversal = 'unsent'))))
    EXECUTE FUNCTION refuse_rewriting('the status',
    'what went back stays gone, and only what was never sent is sent again');
CREATE TRIGGER refund_asks_for_the_same AFTER UPDATE OF refund_id, merchant_id, payment_id, transaction_id, env, amount,
    original_amount ON refund
    FOR EACH ROW WHEN (OLD.refund_id IS DISTINCT FROM NEW.refund_id
    OR OLD.merchant_id IS DISTINCT FROM NEW.merchant_id
    OR (OLD.payment_id, OLD.transaction_id) IS DISTINCT FROM (NEW.payment_id, NEW.transaction_id)
    OR OLD.env IS DISTINCT FROM NEW.env OR OLD.original_amount IS DISTINCT FROM NEW.original_amount
    OR (OLD.amount <> NEW.amount AND OLD.reversal <> 'unsent'))
    EXECUTE FUNCTION refuse_rewriting('what was asked for', 'make another refund');
CREATE TRIGGER refund_not_deleted BEFORE DELETE ON refund
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER refund_never_emptied BEFORE TRUNCATE ON refund
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER refund_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON refund
    FOR EACH ROW
    EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');
CREATE TRIGGER refund_env_is_its_transactions AFTER INSERT OR UPDATE OF env, transaction_id ON refund
    FOR EACH ROW
    EXECUTE FUNCTION refuse_another_env('transaction', 'transaction_id');
