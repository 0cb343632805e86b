CREATE TABLE acme_sms_text (
    payment_id uuid PRIMARY KEY,
    merchant_id uuid NOT NULL,
    env text NOT NULL,
    state text NOT NULL CHECK (state IN ('owed', 'sent', 'given_up')),
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL,
    sent_at timestamptz
);
CREATE INDEX acme_sms_text_merchant ON acme_sms_text (merchant_id, env, payment_id DESC);
CREATE INDEX acme_sms_text_due ON acme_sms_text (due_at) WHERE state = 'owed';
