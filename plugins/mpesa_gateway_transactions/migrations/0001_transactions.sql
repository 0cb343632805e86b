-- The kind of money that merchants see, from its direction, M-Pesa's type, the first report and the subject.
CREATE FUNCTION money_category(direction text, kind text, source text, subject_kind text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN direction = 'in' AND (source = 'stk' OR subject_kind = 'payment') THEN 'stk'
        WHEN kind ~* 'revers' OR source = 'reversal' OR subject_kind = 'refund' THEN 'reversal'
        WHEN direction = 'in' THEN 'c2b'
        WHEN kind ~* 'b2c|customer|salary|promotion' THEN 'b2c'
        WHEN kind ~* 'b2b|business ?(pay|buy)' THEN 'b2b'
        WHEN subject_kind = 'payout' THEN 'b2c'
        WHEN kind ~* 'charge|fee' THEN 'fee'
        ELSE 'other' END
$$;

-- Money that M-Pesa moved: one row for each (env, direction, receipt). A transfer between two of our receivers has two
-- rows. The subject is the payment, refund or payout of the money, the conflict the payment that it contradicts.
-- amount_cents is NULL if no report states a readable amount. merchant_id is the merchant of the subject or conflict,
-- otherwise the receiver's owner, otherwise the merchant that reported the money. subject_kind 'resolved' is money that a
-- person marked as dealt with; its subject is the row itself. announce_at is when transaction.received is due, announced_at
-- when it was published. refund_* are of refunds without a payment. reversed_outside: M-Pesa returned the money, whole or
-- in part, without a refund of the gateway; refunded_cents has as much as is known. Money out with subject_kind
-- 'transaction' returned the money in that is its subject.
CREATE TABLE transaction (
    transaction_id uuid PRIMARY KEY CHECK (has_prefix(transaction_id, 'txn')),
    receiver_id uuid NOT NULL,
    merchant_id uuid NOT NULL REFERENCES merchant,
    occurred_at timestamptz NOT NULL,
    amount_cents bigint CHECK (amount_cents >= 0),
    fee_cents bigint CHECK (fee_cents >= 0),
    refund_reserved_cents bigint NOT NULL DEFAULT 0 CHECK (refund_reserved_cents >= 0),
    refunded_cents bigint NOT NULL DEFAULT 0 CHECK (refunded_cents >= 0),
    announce_at timestamptz,
    announced_at timestamptz,
    subject_id uuid CHECK (is_id(subject_id)),
    conflict_id uuid CHECK (is_id(conflict_id)),
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    direction text NOT NULL CHECK (direction IN ('in', 'out')),
    kind text,
    receipt text COLLATE "C" NOT NULL CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    payer text,
    payer_digest text COLLATE "C" CHECK (payer_digest ~ '^[0-9a-f]{64}$'),
    payer_name text,
    account_number text,
    subject_kind text,
    reversed_outside text CHECK (reversed_outside IN ('whole', 'part')),
    -- Nothing of the money is left to decide: it has a subject, or all of it was returned.
    is_settled boolean NOT NULL GENERATED ALWAYS AS (subject_id IS NOT NULL OR reversed_outside IS NOT DISTINCT FROM 'whole'
        OR (amount_cents > 0 AND refunded_cents = amount_cents) IS TRUE) STORED,
    first_source text NOT NULL CHECK (first_source <> ''),
    -- The kind that merchants see: money_category() of the row.
    category text NOT NULL DEFAULT 'other'
        CHECK (category IN ('stk', 'c2b', 'reversal', 'b2c', 'b2b', 'fee', 'other')),
    FOREIGN KEY (receiver_id, env) REFERENCES receiver (receiver_id, env),
    CONSTRAINT transaction_refunds_fit CHECK (refund_reserved_cents + refunded_cents <= COALESCE(amount_cents, 0)),
    CONSTRAINT transaction_payments_refund_themselves CHECK (refund_reserved_cents + refunded_cents = 0
        OR (direction = 'in' AND subject_kind IS DISTINCT FROM 'payment')),
    CONSTRAINT transaction_reversed_outside_is_money_in CHECK (reversed_outside IS NULL OR (direction = 'in'
        AND subject_kind IS DISTINCT FROM 'payment' AND refund_reserved_cents = 0
        AND (reversed_outside = 'part' OR refunded_cents = COALESCE(amount_cents, 0)))),
    CONSTRAINT transaction_returns_money_in CHECK (subject_kind <> 'transaction' OR direction = 'out'),
    CONSTRAINT transaction_resolved_is_its_own_subject
        CHECK (subject_kind <> 'resolved' OR subject_id = transaction_id),
    CONSTRAINT transaction_announced_once CHECK (num_nonnulls(announce_at, announced_at) <= 1),
    CONSTRAINT transaction_subject_is_whole CHECK ((subject_kind IS NULL) = (subject_id IS NULL)),
    CONSTRAINT transaction_receipt UNIQUE (env, direction, receipt)
);
CREATE UNIQUE INDEX transaction_subject ON transaction (subject_id)
    WHERE subject_kind IN ('payment', 'refund', 'payout');
CREATE INDEX transaction_returns ON transaction (subject_id) WHERE subject_kind = 'transaction';
CREATE INDEX transaction_conflict ON transaction (conflict_id) WHERE conflict_id IS NOT NULL;
-- For recent unallocated money by receiver and amount.
CREATE INDEX transaction_unallocated ON transaction (receiver_id, amount_cents, transaction_id)
    WHERE direction = 'in' AND subject_id IS NULL;
-- For returned money by receiver and amount.
CREATE INDEX transaction_returned ON transaction (receiver_id, amount_cents)
    WHERE refund_reserved_cents + refunded_cents > 0 OR reversed_outside IS NOT NULL;
CREATE INDEX transaction_newest ON transaction (merchant_id, env, transaction_id);
CREATE INDEX transaction_out ON transaction (merchant_id, env, transaction_id) WHERE direction = 'out';
CREATE INDEX transaction_open ON transaction (merchant_id, env, transaction_id) WHERE subject_id IS NULL;
CREATE INDEX transaction_open_of_receiver ON transaction (receiver_id, transaction_id) WHERE subject_id IS NULL;
CREATE INDEX transaction_of_kind ON transaction (merchant_id, env, category, transaction_id) WHERE category <> 'stk';
CREATE INDEX transaction_of_receiver ON transaction (receiver_id, transaction_id);
CREATE INDEX transaction_amount ON transaction (merchant_id, env, amount_cents, transaction_id);
CREATE INDEX transaction_payer ON transaction (merchant_id, payer, transaction_id) WHERE payer IS NOT NULL;
CREATE INDEX transaction_payer_digest ON transaction (merchant_id, payer_digest, transaction_id)
    WHERE payer_digest IS NOT NULL;
CREATE INDEX transaction_account_number ON transaction (merchant_id, env, upper(account_number), transaction_id)
    WHERE account_number IS NOT NULL;
-- Postgres takes no statistics from a partial index.
CREATE STATISTICS transaction_account_number_values ON (upper(account_number)) FROM transaction;
CREATE INDEX transaction_to_announce ON transaction (announce_at) WHERE announce_at IS NOT NULL;

CREATE TRIGGER transaction_is_set_once
    AFTER UPDATE OF transaction_id, env, receiver_id, direction, receipt, occurred_at, first_source ON transaction
    FOR EACH ROW WHEN (
        (OLD.transaction_id, OLD.env, OLD.receiver_id, OLD.direction, OLD.receipt, OLD.occurred_at, OLD.first_source)
        IS DISTINCT FROM
        (NEW.transaction_id, NEW.env, NEW.receiver_id, NEW.direction, NEW.receipt, NEW.occurred_at, NEW.first_source))
    EXECUTE FUNCTION refuse_rewriting('what M-Pesa moved', 'the first report of a receipt stays');
CREATE TRIGGER transaction_has_one_subject AFTER UPDATE OF subject_kind, subject_id, amount_cents ON transaction
    -- Of money that was resolved without a readable amount, a later report may state it.
    FOR EACH ROW WHEN (OLD.subject_id IS NOT NULL AND ((OLD.subject_kind, OLD.subject_id)
        IS DISTINCT FROM (NEW.subject_kind, NEW.subject_id) OR (OLD.amount_cents IS DISTINCT FROM NEW.amount_cents
        AND NOT (OLD.amount_cents IS NULL AND OLD.subject_kind = 'resolved'))))
    EXECUTE FUNCTION refuse_rewriting('what money is for', 'a receipt pays for one thing');
CREATE TRIGGER transaction_refunded_is_not_allocated AFTER UPDATE OF subject_kind, subject_id ON transaction
    FOR EACH ROW WHEN (OLD.subject_id IS NULL AND NEW.subject_id IS NOT NULL AND (NEW.refund_reserved_cents > 0
        OR ((NEW.refunded_cents > 0 OR NEW.reversed_outside IS NOT NULL) AND NEW.subject_kind <> 'resolved')))
    EXECUTE FUNCTION refuse_rewriting('what money is for', 'refunded money pays for nothing');
-- Unallocated money is the receiver's owner's, also of a later owner. Money that is being recorded is waited for: its
-- transaction has read the former owner.
CREATE FUNCTION hand_over_unallocated_money() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
    LOCK TABLE transaction IN SHARE ROW EXCLUSIVE MODE;
    UPDATE transaction SET merchant_id = NEW.owner_id WHERE receiver_id = NEW.receiver_id
        AND subject_id IS NULL AND conflict_id IS NULL AND merchant_id <> NEW.owner_id;
    RETURN NULL;
END $$;
CREATE TRIGGER transaction_owner_kept AFTER UPDATE OF owner_id ON receiver
    FOR EACH ROW WHEN (NEW.owner_id IS NOT NULL AND NEW.owner_id IS DISTINCT FROM OLD.owner_id)
    EXECUTE FUNCTION hand_over_unallocated_money();
CREATE TRIGGER transaction_not_deleted BEFORE DELETE ON transaction FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Later reports of a receipt, one row for each source. detail states a difference from the first report, which needs
-- review: reviewed_at is when a person has looked into it.
CREATE TABLE transaction_witness (
    transaction_id uuid NOT NULL REFERENCES transaction,
    source text NOT NULL CHECK (source <> ''),
    seen_at timestamptz NOT NULL,
    detail text CHECK (detail <> ''),
    reviewed_at timestamptz,
    reviewed_by text,
    review_note text CHECK (review_note <> ''),
    PRIMARY KEY (transaction_id, source),
    CONSTRAINT transaction_witness_review_is_whole CHECK (num_nulls(reviewed_at, reviewed_by, review_note) IN (0, 3)),
    CONSTRAINT transaction_witness_review_is_of_a_difference CHECK (reviewed_at IS NULL OR detail IS NOT NULL)
);
CREATE INDEX transaction_witness_unreviewed ON transaction_witness (transaction_id)
    WHERE detail IS NOT NULL AND reviewed_at IS NULL;

-- What a rule (by its name) or a person decided that incoming money is for. The newest row of a transaction is its
-- subject. Subjects that the report itself names, such as a push's payment, have none.
CREATE TABLE allocation (
    transaction_id uuid NOT NULL REFERENCES transaction,
    subject_id uuid NOT NULL CHECK (is_id(subject_id)),
    at timestamptz NOT NULL,
    number smallint NOT NULL CHECK (number > 0),
    subject_kind text NOT NULL CHECK (subject_kind <> ''),
    by text NOT NULL CHECK (by <> ''),
    note text CHECK (length(note) BETWEEN 3 AND 500),
    PRIMARY KEY (transaction_id, number)
);
CREATE TRIGGER allocation_append_only BEFORE UPDATE OR DELETE ON allocation
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER allocation_never_emptied BEFORE TRUNCATE ON allocation
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
