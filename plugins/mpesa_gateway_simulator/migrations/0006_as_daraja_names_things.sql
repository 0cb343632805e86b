-- Several tokens of one consumer key. `number` is their order: where a new one ends the others, only the newest is valid.
ALTER TABLE sim_token ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE sim_token DROP CONSTRAINT sim_token_pkey;
ALTER TABLE sim_token ADD PRIMARY KEY (token);
CREATE INDEX sim_token_newest ON sim_token (consumer_key, number);

-- Receipts are numbered, so that no two are equal, and begin somewhere else in each database.
CREATE SEQUENCE sim_receipt;
SELECT setval('sim_receipt', 1 + floor(random() * 78364164095)::bigint);

-- The digits that tell the pushes of one second to one phone apart.
CREATE SEQUENCE sim_handle;
