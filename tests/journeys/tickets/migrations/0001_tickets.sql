CREATE TABLE ticket (
    ticket_id text PRIMARY KEY,
    merchant_id text NOT NULL,
    env text NOT NULL,
    number text NOT NULL,
    asked integer NOT NULL DEFAULT 0,
    UNIQUE (merchant_id, env, number)
);
