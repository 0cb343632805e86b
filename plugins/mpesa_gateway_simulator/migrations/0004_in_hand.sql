-- Phones that somebody holds: they wait for a finger, and have money that can run out.
CREATE TABLE sim_hand (
    phone text PRIMARY KEY,
    style text NOT NULL DEFAULT 'normal',
    -- What was on it before everything that it ever paid: its balance is this less what it has spent.
    opening bigint NOT NULL CHECK (opening >= 0)
);
CREATE INDEX sim_transaction_phone ON sim_transaction (phone, at);
