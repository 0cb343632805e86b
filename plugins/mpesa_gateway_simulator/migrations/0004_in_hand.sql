-- Phones that somebody holds: they wait for a finger, and have money that can run out.
CREATE TABLE sim_hand (
    phone text PRIMARY KEY,
    style text NOT NULL DEFAULT 'normal',
    balance integer NOT NULL DEFAULT 25000 CHECK (balance BETWEEN 0 AND 500000)
);
CREATE INDEX sim_transaction_phone ON sim_transaction (phone, at);
