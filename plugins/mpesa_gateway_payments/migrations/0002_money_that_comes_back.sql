ALTER TABLE payment
    ADD COLUMN refund_reserved integer NOT NULL DEFAULT 0 CHECK (refund_reserved >= 0),
    ADD COLUMN refunded integer NOT NULL DEFAULT 0 CHECK (refunded >= 0),
    ADD COLUMN claim jsonb,
    ADD CONSTRAINT payment_refunds_fit CHECK (refund_reserved + refunded <= amount),
    ADD CONSTRAINT payment_refunds_are_of_money CHECK (
        (refund_reserved = 0 AND refunded = 0) OR status IN ('completed', 'reversed', 'partially_reversed')),
    ADD CONSTRAINT payment_reversed_when_refunded CHECK (
        (status = 'reversed') = (refunded = amount) AND (status = 'partially_reversed') = (refunded BETWEEN 1 AND amount - 1)),
    DROP CONSTRAINT payment_mismatch_check,
    ADD CONSTRAINT payment_mismatch_check CHECK (mismatch IN ('amount', 'phone', 'receipt', 'unconfirmed')),
    DROP CONSTRAINT payment_check3,
    ADD CONSTRAINT payment_due_while_open CHECK (status = 'pending' OR due_at IS NULL OR claim IS NOT NULL);
DROP INDEX payment_due;
CREATE INDEX payment_due ON payment (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX payment_received_receipt ON payment (env, received_receipt) WHERE received_receipt IS NOT NULL;
CREATE INDEX payment_without_receipt ON payment (merchant_id, env, amount, created_at)
    WHERE receipt IS NULL AND status IN ('pending', 'failed', 'completed');

ALTER TABLE payment_step DROP CONSTRAINT payment_step_kind_check, DROP CONSTRAINT payment_step_cause_check;
ALTER TABLE payment_step
    ADD CONSTRAINT payment_step_kind_check CHECK (kind IN ('requested', 'sent', 'unsent', 'unknown', 'refused',
        'completed', 'failed', 'expired', 'mismatched', 'receipt_learnt', 'asked', 'confirming', 'unconfirmed',
        'refund_asked', 'refund_failed', 'reversed', 'partially_reversed')),
    ADD CONSTRAINT payment_step_cause_check CHECK (cause IN ('merchant', 'ack', 'fault', 'callback', 'stk_query',
        'expiry', 'status_query', 'statement', 'reversal', 'operator'));

CREATE TABLE status_check (
    check_id text COLLATE "C" PRIMARY KEY,
    merchant_id text COLLATE "C" NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    payment_id text COLLATE "C" REFERENCES payment,
    receipt text COLLATE "C",
    asked_for text NOT NULL DEFAULT '',
    state text NOT NULL DEFAULT 'sending'
        CHECK (state IN ('sending', 'asked', 'unsent', 'refused', 'unknown', 'answered', 'timed_out')),
    originator_conversation_id text COLLATE "C",
    conversation_id text COLLATE "C",
    result_code text,
    result_desc text,
    transaction_status text,
    finding text,
    created_at timestamptz NOT NULL,
    finished_at timestamptz,
    CHECK (payment_id IS NOT NULL OR receipt IS NOT NULL),
    CHECK ((state IN ('answered', 'timed_out', 'refused', 'unsent')) = (finished_at IS NOT NULL))
);
CREATE INDEX status_check_merchant ON status_check (merchant_id, created_at DESC, check_id DESC);
CREATE INDEX status_check_originator ON status_check (originator_conversation_id)
    WHERE originator_conversation_id IS NOT NULL;
