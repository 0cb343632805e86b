CREATE TABLE provider_credentials (
    merchant_id text COLLATE "C" PRIMARY KEY REFERENCES merchant,
    provider text NOT NULL DEFAULT 'mpesa' CHECK (provider IN ('mpesa')),
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    consumer_key text NOT NULL,
    consumer_secret text NOT NULL,
    passkey text NOT NULL,
    shortcode text NOT NULL CHECK (shortcode ~ '^[0-9]{5,7}$'),
    till_number text CHECK (till_number ~ '^[0-9]{5,7}$'),
    initiator text,
    security_credential text,
    result_url text,
    timeout_url text,
    nominated_number text CHECK (nominated_number ~ '^254[17][0-9]{8}$'),
    account_reference text CHECK (length(account_reference) BETWEEN 1 AND 12),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
