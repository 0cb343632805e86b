ALTER TABLE sim_transaction ALTER COLUMN checkout_request_id DROP NOT NULL;
CREATE INDEX sim_transaction_shortcode ON sim_transaction (shortcode, at, receipt);

ALTER TABLE sim_fault DROP CONSTRAINT sim_fault_operation_check;
ALTER TABLE sim_fault ADD CONSTRAINT sim_fault_operation_check CHECK (operation IN ('oauth', 'stkpush', 'stkquery',
    'transactionstatus', 'reversal', 'pullregister', 'pullquery'));

CREATE TABLE sim_reversal (
    receipt text PRIMARY KEY CHECK (receipt ~ '^[A-Z0-9]{10}$'),
    original text NOT NULL REFERENCES sim_transaction,
    amount integer NOT NULL CHECK (amount > 0),
    originator_conversation_id text NOT NULL UNIQUE,
    at timestamptz NOT NULL
);
CREATE INDEX sim_reversal_original ON sim_reversal (original);

CREATE TABLE sim_registration (
    shortcode text PRIMARY KEY,
    registered_at timestamptz NOT NULL
);

CREATE TABLE sim_habit (
    operation text PRIMARY KEY CHECK (operation IN ('transactionstatus', 'reversal', 'pullquery')),
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
    answered_at timestamptz
);
CREATE INDEX sim_result_due ON sim_result (due_at) WHERE due_at IS NOT NULL;

CREATE SEQUENCE sim_chance;
