-- Reorders a CheckoutRequestID, ws_CO_DDMMYYYYHHMMSS…, by year, month and day, so that its index grows at the end. The
-- function moves characters and drops none: different texts stay different.
CREATE FUNCTION handle_by_time(handle text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT substr(handle, 11, 4) || substr(handle, 9, 2) || substr(handle, 7, 2) || substr(handle, 15) || left(handle, 6)
$$;

-- The values of a payment's metadata, as keys of its merchant and env. RETURN resolves names at the definition: an index
-- is built with another search_path.
CREATE FUNCTION payment_metadata(merchant_id uuid, env text, metadata jsonb) RETURNS uuid[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (SELECT array_agg(key_digest(merchant_id, env, lower(value))) FROM jsonb_each_text(metadata));

-- A payment keeps its shortcode_id; shortcode is the number that payers pay. outcome_is_final: no money is expected
-- after this failure. accepted_at, completed_at and completed_by are the only steps that an ordinary payment stores.
-- result_desc is NULL if result_code is 0 and M-Pesa's text is the ordinary one.
CREATE TABLE payment (
    payment_id uuid PRIMARY KEY CHECK (has_prefix(payment_id, 'pay')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    shortcode_id uuid NOT NULL REFERENCES shortcode,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    amount integer NOT NULL CHECK (amount BETWEEN 1 AND 250000),
    asked integer NOT NULL DEFAULT 0 CHECK (asked >= 0),
    refund_reserved integer NOT NULL DEFAULT 0 CHECK (refund_reserved >= 0),
    refunded integer NOT NULL DEFAULT 0 CHECK (refunded >= 0),
    push_attempt integer NOT NULL DEFAULT 1 CHECK (push_attempt > 0),
    reference_is_ours boolean NOT NULL,
    outcome_is_final boolean NOT NULL DEFAULT false,
    is_mismatch_of_paid boolean NOT NULL DEFAULT false,
    accepted_at timestamptz,
    completed_at timestamptz,
    due_at timestamptz,
    reviewed_at timestamptz,
    erased_at timestamptz,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    provider text NOT NULL CHECK (provider = 'mpesa'),
    shortcode text NOT NULL CHECK (shortcode ~ '^[0-9]{5,7}$'),
    currency text NOT NULL CHECK (currency = 'KES'),
    phone text COLLATE "C" NOT NULL,
    reference text COLLATE "C" NOT NULL CHECK (length(reference) BETWEEN 1 AND 12),
    description text NOT NULL CHECK (length(description) <= 13),
    idempotency_key text NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'completed', 'failed', 'reversed', 'partially_reversed')),
    -- ready is committed with the payment, sending immediately before its push: a ready push was never sent.
    charge text NOT NULL DEFAULT 'sending'
        CHECK (charge IN ('ready', 'sending', 'released', 'accepted', 'refused', 'unknown')),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    callback_url text,
    merchant_request_id text,
    checkout_request_id text COLLATE "C",
    receipt text COLLATE "C" CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    result_code text,
    result_desc text,
    completed_by text CHECK (completed_by IN ('callback', 'stk_query', 'status_query', 'statement', 'c2b',
        'operator', 'merchant')),
    failure_reason text CHECK (failure_reason IN ('insufficient_funds', 'cancelled_by_user', 'wrong_pin', 'timeout',
        'unreachable', 'limit_exceeded', 'duplicate_in_progress', 'rejected_by_provider', 'expired', 'not_sent',
        'other')),
    mismatch text CHECK (mismatch IN ('amount', 'phone', 'receipt', 'unconfirmed', 'returned')),
    received_amount text,
    received_receipt text,
    received_phone text,
    reversed_outside text CHECK (reversed_outside IN ('whole', 'part')),
    claim jsonb,
    -- The person who requested it on the pages; NULL for the merchant's system.
    requested_by text CHECK (length(requested_by) BETWEEN 1 AND 200),
    CONSTRAINT payment_accepted_has_its_ids CHECK (charge <> 'accepted' OR checkout_request_id IS NOT NULL),
    CONSTRAINT payment_check
        CHECK ((status IN ('completed', 'reversed', 'partially_reversed')) = (completed_at IS NOT NULL)),
    CONSTRAINT payment_check1 CHECK ((status = 'failed') = (failure_reason IS NOT NULL)),
    CONSTRAINT payment_check2 CHECK (receipt IS NULL OR status IN ('completed', 'reversed', 'partially_reversed')),
    CONSTRAINT payment_check4 CHECK (status <> 'pending' OR due_at IS NOT NULL OR mismatch IS NOT NULL),
    CONSTRAINT payment_claim_is_being_asked_about CHECK (claim IS NULL OR (jsonb_typeof(claim) = 'object'
        AND status IN ('pending', 'failed') AND due_at IS NOT NULL)),
    CONSTRAINT payment_due_while_open CHECK (status = 'pending' OR due_at IS NULL OR claim IS NOT NULL
        OR (status = 'failed' AND failure_reason = 'expired' AND checkout_request_id IS NOT NULL)),
    CONSTRAINT payment_erased_when_ended CHECK (erased_at IS NULL OR status <> 'pending'),
    CONSTRAINT payment_reviewed_what_waited CHECK (reviewed_at IS NULL OR mismatch IS NOT NULL
        OR reversed_outside IS NOT NULL),
    CONSTRAINT payment_own_reference_form CHECK (NOT reference_is_ours OR reference ~ '^[A-Z2-7]{12}$'),
    CONSTRAINT payment_phone_check CHECK ( CASE WHEN erased_at IS NULL THEN phone ~ '^254[17][0-9]{8}$'
        ELSE phone = 'erased' END),
    CONSTRAINT payment_received_something_else CHECK (mismatch IS NOT NULL
        OR num_nonnulls(received_amount, received_receipt, received_phone) = 0),
    CONSTRAINT payment_refunds_are_of_money CHECK ((refund_reserved = 0 AND refunded = 0)
        OR status IN ('completed', 'reversed', 'partially_reversed')),
    CONSTRAINT payment_refunds_fit CHECK ((refund_reserved + refunded) <= amount),
    CONSTRAINT payment_reversed_outside_fits_status CHECK (reversed_outside <> 'whole' OR status = 'reversed'),
    CONSTRAINT payment_reversed_when_refunded CHECK (((status = 'reversed') = (refunded = amount))
        AND ((status = 'partially_reversed') = (refunded >= 1 AND (refunded <= (amount - 1)))))
);
CREATE UNIQUE INDEX payment_of_key ON payment (key_digest(merchant_id, env, idempotency_key));
CREATE UNIQUE INDEX payment_receipt ON payment (env, receipt) WHERE receipt IS NOT NULL;
CREATE UNIQUE INDEX payment_own_reference ON payment (reference) WHERE reference_is_ours;
CREATE INDEX payment_received_receipt ON payment (env, received_receipt) WHERE received_receipt IS NOT NULL;
CREATE INDEX payment_without_receipt ON payment (env, shortcode, amount, created_at)
    WHERE receipt IS NULL AND status IN ('pending', 'failed', 'completed');
CREATE INDEX payment_received_phone ON payment (merchant_id, received_phone) WHERE received_phone IS NOT NULL;
CREATE INDEX payment_due ON payment (shortcode_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX payment_expiry ON payment (expires_at) WHERE status = 'pending' AND mismatch IS NULL;
CREATE UNIQUE INDEX payment_checkout_request_id ON payment (handle_by_time(checkout_request_id), env)
    WHERE checkout_request_id IS NOT NULL;
-- Postgres takes no statistics from a partial index: it would expect 0.5 % of all payments for each handle, and read the
-- whole table for a few.
CREATE STATISTICS payment_handle ON (handle_by_time(checkout_request_id)) FROM payment;
-- The hourly counts read changed payments: only the newest time in each range matters.
CREATE INDEX payment_updated ON payment USING brin (updated_at) WITH (autosummarize='on', pages_per_range='16');
CREATE INDEX payment_newest ON payment (merchant_id, env, payment_id) INCLUDE (amount);
CREATE INDEX payment_newest_of_status ON payment (merchant_id, env, status, payment_id) INCLUDE (amount);
CREATE INDEX payment_newest_of_shortcode ON payment (merchant_id, env, shortcode, payment_id);
-- Reversed, so that it serves the last digits as well.
CREATE INDEX payment_merchant_phone ON payment (merchant_id, env, reverse(phone), payment_id);
CREATE INDEX payment_metadata_value ON payment USING gin (payment_metadata(merchant_id, env, metadata))
    WHERE metadata <> '{}';
-- Our own references are indexed by payment_own_reference.
CREATE INDEX payment_merchant_reference ON payment (merchant_id, env, reference, payment_id) WHERE NOT reference_is_ours;
CREATE INDEX payment_merchant_amount ON payment (merchant_id, env, amount, payment_id);
CREATE INDEX payment_held ON payment (merchant_id, env, payment_id)
    WHERE reviewed_at IS NULL AND (mismatch IS NOT NULL OR reversed_outside IS NOT NULL);

-- Steps other than those in the payment's columns.
CREATE TABLE payment_step (
    payment_id uuid NOT NULL REFERENCES payment,
    number bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('requested', 'sent', 'unsent', 'unknown', 'refused', 'completed', 'failed',
        'expired', 'mismatched', 'receipt_learnt', 'asked', 'confirming', 'unconfirmed', 'refund_asked',
        'refund_failed', 'reversed', 'partially_reversed', 'reviewed', 'reversal_seen')),
    cause text NOT NULL CHECK (cause IN ('merchant', 'ack', 'fault', 'callback', 'stk_query', 'expiry', 'status_query',
        'statement', 'c2b', 'reversal', 'operator')),
    result_code text,
    detail text NOT NULL,
    PRIMARY KEY (payment_id, number)
);
-- A payment fails, completes and is fully reversed at most once each.
CREATE UNIQUE INDEX payment_step_change ON payment_step (payment_id, (CASE
    WHEN (kind = ANY (ARRAY['refused', 'expired'])) THEN 'failed' ELSE kind
    END)) WHERE kind IN ('completed', 'failed', 'refused', 'expired', 'reversed');

CREATE TABLE status_check (
    check_id uuid PRIMARY KEY CHECK (has_prefix(check_id, 'chk')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    shortcode text NOT NULL,
    payment_id uuid REFERENCES payment,
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
    answered_receipt text COLLATE "C",
    answered_amount text,
    created_at timestamptz NOT NULL,
    finished_at timestamptz,
    reference text COLLATE "C",
    -- When a person has looked into an ambiguous answer.
    reviewed_at timestamptz,
    reviewed_by text,
    review_note text CHECK (review_note <> ''),
    CONSTRAINT status_check_review_is_whole CHECK (num_nulls(reviewed_at, reviewed_by, review_note) IN (0, 3)),
    CONSTRAINT status_check_review_is_of_an_ambiguous_answer
        CHECK (reviewed_at IS NULL OR finding IS NOT DISTINCT FROM 'ambiguous'),
    CONSTRAINT status_check_check CHECK (payment_id IS NOT NULL OR receipt IS NOT NULL),
    CONSTRAINT status_check_check1
        CHECK ((state IN ('answered', 'timed_out', 'refused', 'unsent')) = (finished_at IS NOT NULL))
);
CREATE INDEX status_check_originator ON status_check (originator_conversation_id)
    WHERE originator_conversation_id IS NOT NULL;
-- Answers that need review.
CREATE INDEX status_check_undecided ON status_check (env, check_id) WHERE finding = 'ambiguous' AND reviewed_at IS NULL;
-- Queries about a receipt that no payment had yet.
CREATE INDEX status_check_receipt ON status_check (receipt) WHERE payment_id IS NULL;
CREATE INDEX status_check_payment ON status_check (payment_id, check_id) WHERE payment_id IS NOT NULL;

-- Hourly counts for the overview.
CREATE TABLE payment_stats (
    hour timestamptz NOT NULL CHECK (hour = date_trunc('hour', hour, 'UTC')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    asked integer NOT NULL,
    paid integer NOT NULL,
    failed integer NOT NULL,
    taken bigint NOT NULL,
    returned bigint NOT NULL,
    reasons jsonb NOT NULL CHECK (jsonb_typeof(reasons) = 'object'),
    waits integer[] NOT NULL CHECK (cardinality(waits) = 6),
    counted_at timestamptz NOT NULL,
    CONSTRAINT payment_stats_check CHECK ((paid + failed) <= asked),
    PRIMARY KEY (hour, merchant_id, env)
);
CREATE INDEX payment_stats_merchant ON payment_stats (merchant_id, env, hour);
CREATE INDEX payment_stats_counted ON payment_stats (counted_at DESC);

-- Receipts that M-Pesa reported as reversed and that no payment had: they pay for nothing. is_part: reversed in part.
-- number is the receiver that the report is about; it proves nothing about another one. The receipts of reversals are
-- transactions.
CREATE TABLE outgoing_receipt (
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    number text COLLATE "C" NOT NULL,
    receipt text COLLATE "C" NOT NULL CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    noted_at timestamptz NOT NULL,
    is_part boolean NOT NULL DEFAULT false,
    FOREIGN KEY (env, number) REFERENCES receiver (env, number),
    PRIMARY KEY (env, receipt, number)
);
CREATE INDEX outgoing_receipt_gone ON outgoing_receipt (noted_at);

-- All steps of a payment, ordered by (at, rank, number): rank decides between equal times.
CREATE VIEW payment_timeline AS
SELECT payment_id, created_at AS at, 'requested' AS kind,
    CASE WHEN requested_by IS NULL THEN 'merchant' ELSE 'operator' END AS cause, NULL AS result_code, '' AS detail,
    0 AS rank, 0::bigint AS number
FROM payment
UNION ALL
SELECT payment_id, accepted_at, 'sent', 'ack', '0', '', 1, 0 FROM payment WHERE accepted_at IS NOT NULL
UNION ALL
SELECT payment_id, at, kind, cause, result_code, detail, CASE WHEN kind IN ('receipt_learnt', 'refund_asked',
    'refund_failed', 'partially_reversed', 'reversed', 'reversal_seen', 'reviewed') THEN 4 ELSE 2 END, number
FROM payment_step WHERE kind <> 'requested'
UNION ALL
SELECT payment_id, completed_at, 'completed', completed_by, result_code, COALESCE(result_desc, CASE
    WHEN result_code = '0' THEN 'The service request is processed successfully.' ELSE '' END), 3, 0
FROM payment WHERE completed_by IS NOT NULL;

CREATE TRIGGER payment_proof_is_kept AFTER UPDATE OF receipt, completed_at, refunded ON payment
    FOR EACH ROW WHEN ((OLD.receipt IS NOT NULL AND NEW.receipt IS DISTINCT FROM OLD.receipt)
    OR (OLD.completed_at IS NOT NULL AND NEW.completed_at IS DISTINCT FROM OLD.completed_at)
    OR NEW.refunded < OLD.refunded)
    EXECUTE FUNCTION refuse_rewriting('the proof of money', 'a receipt is set once, and what went back stays gone');
CREATE TRIGGER payment_not_deleted BEFORE DELETE ON payment
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_never_emptied BEFORE TRUNCATE ON payment
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_erased_for_good AFTER UPDATE OF phone, erased_at ON payment
    FOR EACH ROW WHEN (OLD.erased_at IS NOT NULL AND (OLD.phone IS DISTINCT FROM NEW.phone
    OR OLD.erased_at IS DISTINCT FROM NEW.erased_at))
    EXECUTE FUNCTION refuse_rewriting('what was erased', 'it does not come back');
CREATE TRIGGER payment_asks_for_the_same AFTER UPDATE OF merchant_id, env, provider, shortcode, shortcode_id,
    amount, currency, idempotency_key ON payment
    FOR EACH ROW WHEN (OLD.merchant_id IS DISTINCT FROM NEW.merchant_id OR OLD.env IS DISTINCT FROM NEW.env
    OR OLD.provider IS DISTINCT FROM NEW.provider OR OLD.shortcode IS DISTINCT FROM NEW.shortcode
    OR OLD.shortcode_id IS DISTINCT FROM NEW.shortcode_id OR OLD.amount IS DISTINCT FROM NEW.amount
    OR OLD.currency IS DISTINCT FROM NEW.currency OR OLD.idempotency_key IS DISTINCT FROM NEW.idempotency_key)
    EXECUTE FUNCTION refuse_rewriting('what was asked for', 'make another payment');
-- The same transitions as in states.py; tests/plugins/payments/test_constraints.py compares the two.
CREATE TRIGGER payment_moves AFTER UPDATE OF status ON payment
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND (NOT ((OLD.status = 'pending'
    AND NEW.status IN ('completed', 'failed')) OR (OLD.status = 'failed' AND NEW.status = 'completed'
    AND (NEW.receipt IS NOT NULL OR (NOT OLD.outcome_is_final)))
    OR (OLD.status IN ('completed', 'partially_reversed') AND NEW.status IN ('reversed', 'partially_reversed')))))
    EXECUTE FUNCTION refuse_rewriting('the status', 'states.py has no such move');

-- Without detail: an erasure removes a payer's number from it.
CREATE TRIGGER payment_step_append_only BEFORE UPDATE OF payment_id, at, kind, cause, result_code ON payment_step
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_step_not_deleted BEFORE DELETE ON payment_step
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_step_never_emptied BEFORE TRUNCATE ON payment_step
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();

CREATE TRIGGER status_check_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON status_check
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL)
    EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');
