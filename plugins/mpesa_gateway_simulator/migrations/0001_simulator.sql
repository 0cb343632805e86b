CREATE SEQUENCE sim_chance;

-- Receipts are numbered to be unique; each database starts at another number.
CREATE SEQUENCE sim_receipt;

-- The digits that distinguish pushes to one phone within one second.
CREATE SEQUENCE sim_handle;

-- A consumer key can have several tokens, ordered by number.
CREATE TABLE sim_token (
    consumer_key text NOT NULL,
    token text PRIMARY KEY UNIQUE,
    expires_at timestamptz NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY
);
CREATE INDEX sim_token_newest ON sim_token (consumer_key, number);

CREATE TABLE sim_push (
    checkout_request_id text PRIMARY KEY,
    merchant_request_id text NOT NULL UNIQUE,
    shortcode text NOT NULL,
    receiver text NOT NULL,
    phone text NOT NULL,
    amount integer NOT NULL CHECK (amount BETWEEN 1 AND 250000),
    reference text NOT NULL,
    description text NOT NULL,
    callback_url text NOT NULL,
    behaviour text NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'ended')),
    result_code text,
    receipt text,
    created_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT sim_push_check CHECK ((state = 'ended') = (result_code IS NOT NULL)),
    CONSTRAINT sim_push_check1 CHECK ((state = 'ended') = (ended_at IS NOT NULL))
);
CREATE INDEX sim_push_due ON sim_push (ends_at) WHERE state = 'open';
CREATE INDEX sim_push_phone ON sim_push (phone, created_at DESC);
CREATE INDEX sim_push_created ON sim_push (created_at DESC);

CREATE TABLE sim_callback (
    callback_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    checkout_request_id text NOT NULL REFERENCES sim_push ON DELETE CASCADE,
    body text NOT NULL,
    due_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    last_status integer,
    answered_at timestamptz,
    encoding text NOT NULL DEFAULT 'utf-8'
);
CREATE INDEX sim_callback_due ON sim_callback (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX sim_callback_push ON sim_callback (checkout_request_id);

-- The ledger of M-Pesa: pushes, payments without a prompt, payouts, charges, reversals on the portal.
-- skew: error of the stamping clock in seconds. meant_for: the push whose payer paid by hand instead.
CREATE TABLE sim_transaction (
    receipt text PRIMARY KEY CHECK (receipt ~ '^[A-Z0-9]{10}$'),
    checkout_request_id text UNIQUE,
    phone text NOT NULL,
    amount integer NOT NULL CHECK (amount > 0),
    shortcode text NOT NULL,
    reference text NOT NULL,
    at timestamptz NOT NULL,
    kind text NOT NULL DEFAULT 'push'
        CHECK (kind IN ('push', 'pay_bill', 'buy_goods', 'payout', 'shop_payment', 'portal_reversal', 'charge')),
    party text NOT NULL DEFAULT '',
    payer_shown text NOT NULL DEFAULT 'national'
        CHECK (payer_shown IN ('national', 'whole', 'masked', 'partial', 'hashed', 'absent')),
    time_shown text NOT NULL DEFAULT 'offset' CHECK (time_shown IN ('offset', 'no_zone', 'z_meaning_eat')),
    skew integer NOT NULL DEFAULT 0,
    meant_for text,
    is_out boolean NOT NULL DEFAULT false
);
CREATE INDEX sim_transaction_at ON sim_transaction (at DESC);
CREATE INDEX sim_transaction_shortcode ON sim_transaction (shortcode, at, receipt);
CREATE INDEX sim_transaction_phone ON sim_transaction (phone, at);

CREATE TABLE sim_fault (
    operation text PRIMARY KEY
        CHECK (operation IN ('oauth', 'stkpush', 'stkquery', 'transactionstatus', 'reversal', 'pullregister',
        'pullquery', 'c2bregister', 'c2bsimulate', 'qrcode')),
    fault text NOT NULL,
    remaining integer NOT NULL CHECK (remaining >= 0)
);

CREATE TABLE sim_knob (
    name text PRIMARY KEY,
    value double precision NOT NULL
);

CREATE TABLE sim_reversal (
    receipt text PRIMARY KEY CHECK (receipt ~ '^[A-Z0-9]{10}$'),
    original text NOT NULL REFERENCES sim_transaction,
    amount integer NOT NULL CHECK (amount > 0),
    originator_conversation_id text NOT NULL UNIQUE,
    at timestamptz NOT NULL
);
CREATE INDEX sim_reversal_original ON sim_reversal (original);
CREATE INDEX sim_reversal_at ON sim_reversal (at);

CREATE TABLE sim_registration (
    shortcode text PRIMARY KEY,
    registered_at timestamptz NOT NULL
);

CREATE TABLE sim_habit (
    operation text PRIMARY KEY
        CHECK (operation IN ('oauth', 'stkpush', 'stkack', 'callback', 'stkquery', 'transactionstatus', 'reversal',
        'pullquery', 'c2bregister', 'c2bsimulate', 'qrcode')),
    habit text NOT NULL
);

CREATE TABLE sim_result (
    result_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    operation text NOT NULL,
    originator_conversation_id text NOT NULL,
    callback_url text NOT NULL,
    body text NOT NULL,
    due_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    last_status integer,
    answered_at timestamptz,
    encoding text NOT NULL DEFAULT 'utf-8'
);
CREATE INDEX sim_result_due ON sim_result (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX sim_result_confirmation ON sim_result (originator_conversation_id) WHERE operation = 'c2bconfirmation';

-- The C2B addresses of a shortcode.
CREATE TABLE sim_c2b_registration (
    shortcode text PRIMARY KEY,
    version text NOT NULL CHECK (version IN ('v1', 'v2')),
    response_type text NOT NULL CHECK (response_type IN ('Completed', 'Cancelled')),
    confirmation_url text NOT NULL,
    validation_url text NOT NULL,
    registered_at timestamptz NOT NULL
);

-- Payments without a prompt. Money moves when validation ends; manner: how Daraja reports it, as JSON.
CREATE TABLE sim_c2b_payment (
    receipt text PRIMARY KEY CHECK (receipt ~ '^[A-Z0-9]{10}$'),
    phone text NOT NULL,
    amount integer NOT NULL CHECK (amount BETWEEN 1 AND 250000),
    shortcode text NOT NULL,
    account_number text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('pay_bill', 'buy_goods')),
    manner text NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'paid', 'refused')),
    code text,
    created_at timestamptz NOT NULL,
    due_at timestamptz,
    ended_at timestamptz,
    CONSTRAINT sim_c2b_payment_ended CHECK ((state = 'waiting') = (ended_at IS NULL)),
    CONSTRAINT sim_c2b_payment_due CHECK ((state = 'waiting') = (due_at IS NOT NULL))
);
CREATE INDEX sim_c2b_payment_waiting ON sim_c2b_payment (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX sim_c2b_payment_phone ON sim_c2b_payment (phone, created_at DESC);
CREATE INDEX sim_c2b_payment_created ON sim_c2b_payment (created_at DESC);

-- Phones that are answered by hand. opening: the balance in KES before all payments.
CREATE TABLE sim_hand (
    phone text PRIMARY KEY,
    style text NOT NULL DEFAULT 'normal',
    opening bigint NOT NULL CHECK (opening >= 0)
);

-- A reset restarts the random sequence. Only a sequence's owner can restart it; the simulator's role is another one.
CREATE FUNCTION sim_chance_begins_again() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    ALTER SEQUENCE sim_chance RESTART;
    ALTER SEQUENCE sim_handle RESTART;
    PERFORM setval('sim_receipt', 1 + floor(random() * 78364164095)::bigint);
END
$$;

SELECT setval('sim_receipt', 1 + floor(random() * 78364164095)::bigint);

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION sim_chance_begins_again() SET search_path = %I, pg_temp', current_schema());
END
$$;
